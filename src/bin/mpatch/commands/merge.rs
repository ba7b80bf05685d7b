//! `mpatch merge`: another branch's patches join this one's, with one rounding.
//!
//! Two series with a common beginning cannot simply follow each other: each patch was bound to the state before it,
//! rounding does not commute, and a patch bound anew is another patch than the one that was signed. So the merged
//! state is the common beginning, and then one patch that adds up everything that either side has beyond it, each
//! update once and in one order, rounded once. It can be reached from either side bit for bit, by taking back that
//! side's own patches, and it does not depend on how many steps either side took.
//!
//! What an earlier merge added up may have gone on since, on the branch that it came from, or been taken back there. So
//! a merged patch is its parts again wherever one of them matters to the other side, and each part goes in once.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use mpatch::checkpoint::{Checkpoint, PassingFolder};
use mpatch::digest::PatchId;
use mpatch::patch::{Patch, Signed};
use mpatch::stack::{AddOptions, Named, StackError, Stacked, plan_among};
use mpatch::store::{Atlas, Beside, Change, Commit, CommitId, Message, Store, StoreError, way};
use serde::Serialize;

use super::agreement::{Agreement, OVERLAP_ANGLE_DEGREES};
use super::open_checkpoint;
use super::origins::Origins;
use super::stack::{SideArguments, stack_error, touched_size_bytes};
use crate::error::{CommandError, ExitKind};
use crate::history::{CommitReport, LockArguments, StoreArguments, branch_of, head_after_change, message};
use crate::job::{TOOL, encoded};
use crate::keys::{SignatureReport, Signer, SigningArguments, with_word_of_key};
use crate::report::{Output, Page, Report};
use crate::standing::{locate, model_path_by, series_at};
use crate::trust::{Company, Lines, Permitted, TrustArguments, TrustReport, United, is_news, require_among};
use crate::walk::walk;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  mpatch merge geography\n  mpatch merge origin/main --theirs")]
pub struct MergeArguments {
    /// Join this state: a branch, a tag, or the start of a commit's id
    revision: String,
    #[command(flatten)]
    sides: SideArguments,
    /// Read this model, in any known state, instead of the one that the history remembers
    #[arg(long, visible_alias = "onto", value_name = "MODEL")]
    base: Option<std::path::PathBuf>,
    /// How the merged patch is signed.
    #[command(flatten)]
    signing: SigningArguments,
    #[command(flatten)]
    store: StoreArguments,
    #[command(flatten)]
    lock: LockArguments,
    #[command(flatten)]
    trust: TrustArguments,
}

#[derive(Debug, Serialize)]
struct MergeReport {
    outcome: Outcome,
    branch: Option<String>,
    commit: CommitReport,
    stacked: Vec<PatchId>,
    /// What the signatures say of those, in the same order.
    trust: Vec<TrustReport>,
    /// How these met; nothing where none had to be added up.
    #[serde(flatten)]
    agreement: Agreement,
    /// None where nothing was signed.
    signature: Option<SignatureReport>,
    /// Files beside the states that both sides have changed, and that are as on this one.
    files_kept: Vec<String>,
    /// Files of the other side that have no room here, each with the one in its way.
    files_left_out: BTreeMap<String, String>,
    /// What `checkout` will ask for again.
    #[serde(skip)]
    words: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    AlreadyThere,
    FastForward,
    Merged,
}

/// Joins the two.
pub fn run(arguments: &MergeArguments, output: &Output) -> Result<(), CommandError> {
    let store = arguments.store.open()?;
    let ours = store.commit(store.head()?)?;
    let theirs = store.commit(store.resolve(&arguments.revision)?)?;
    let (ahead, behind) = store.ahead_behind(ours.id, theirs.id)?;
    // What both have is taken from this side.
    [&theirs, &ours].into_iter().try_for_each(|side| store.look_first_in(side.id))?;
    let mut change = arguments.lock.change(&store)?;
    // The head is what it was when the plan was made: the lock is held from here on.
    if change.view().head_commit() != Some(ours.id) {
        return Err(CommandError::new(ExitKind::Busy, "the history was changed meanwhile").hint("try again"));
    }
    let sides = [&ours, &theirs];
    let (outcome, merged) = match (ahead, behind) {
        (_, 0) => (Outcome::AlreadyThere, Merged::default()),
        (0, _) if !loses_signatures(&store, sides)? => {
            change.fast_forward(theirs.id);
            (Outcome::FastForward, Merged::default())
        }
        _ => (Outcome::Merged, join(&store, &mut change, sides, arguments, output)?),
    };
    let branch = branch_of(change.view()).map(str::to_owned);
    let finished = change.finish(&format!("merge {}", arguments.revision));
    finished.map_err(|error| with_word_of_key(merged.signer.as_ref(), error.into()))?;
    let report = MergeReport::new(outcome, branch, merged, &store, arguments)?;
    output.report_done(&report)
}

/// Makes one state of two that have gone apart, as the next commit of `change`.
fn join(
    store: &Store,
    change: &mut Change<'_>,
    [ours, theirs]: [&Commit; 2],
    arguments: &MergeArguments,
    output: &Output,
) -> Result<Merged, CommandError> {
    unite_signatures(store, change, [ours, theirs], output)?;
    // What else lies in this copy of the history decides nothing: the others merge alike.
    let atlas = store.atlas_behind(&[ours.id, theirs.id])?;
    let origins = Origins::of(store, &atlas)?;
    let plan = Plan::new(store, ours, theirs, &origins)?;
    let mut merged = match plan.beyond.is_empty() {
        true => Merged { series: plan.series, ..Merged::default() },
        false => {
            let mut signer = arguments.signing.signer()?;
            let stacked = plan.stacked(store, &atlas, &origins, arguments, signer.as_mut(), output)?;
            Merged { signer, ..stacked }
        }
    };
    let title = format!("Merge {}", arguments.revision);
    let mut notes = notes(&merged.judged);
    notes.append(&mut merged.decided);
    let words = match &merged.patch {
        Some(patch) => message(patch.manifest(), patch.id(), Some(&title), notes),
        None => Message { title, notes, ..Message::default() },
    };
    let made = change.merge(theirs.id, &merged.series, merged.patch.as_ref(), words);
    merged.beside = made.map_err(|error| with_word_of_key(merged.signer.as_ref(), error.into()))?;
    Ok(merged)
}

/// Whether the other side has a patch of this one without a signature that it has here: whoever made it go on there has
/// no say in that.
fn loses_signatures(store: &Store, [ours, theirs]: [&Commit; 2]) -> Result<bool, CommandError> {
    for id in store.differing(ours.id, theirs.id)? {
        if let Some([ours, theirs]) = signed_by_both(store, [ours, theirs], id)?
            && ours.signatures.iter().any(|one| is_news(one, &theirs.signatures, &ours.manifest_bytes))
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Puts the signatures of both sides into each patch that they have with different ones.
fn unite_signatures(
    store: &Store,
    change: &mut Change<'_>,
    sides: [&Commit; 2],
    output: &Output,
) -> Result<(), CommandError> {
    let [ours, theirs] = sides.map(|side| side.id);
    for id in store.differing(ours, theirs)? {
        let Some([ours, theirs]) = signed_by_both(store, sides, id)? else {
            let short = id.short();
            output.warn(&format!(
                "both sides have the patch {short} in different files, and not both files are here: it stays as it is on this side; `mpatch pull` fetches them"
            ));
            continue;
        };
        let united = United::of(&ours.manifest_bytes, &ours.signatures, &theirs.signatures);
        united.word_of_left_out(&id.short()).iter().for_each(|word| output.warn(word));
        if united.signatures != ours.signatures {
            let patch = store.patch(id)?.with_signatures(united.signatures);
            change.sign_anew(&patch.map_err(|error| CommandError::patch(&id.short(), &error))?)?;
            output.note(&format!("the patch {} has the signatures of both sides", id.short()));
        }
    }
    Ok(())
}

/// What tells who signed a patch on both sides; none where the bytes of a large one are not here.
fn signed_by_both(
    store: &Store,
    sides: [&Commit; 2],
    id: PatchId,
) -> Result<Option<[Signed; 2]>, CommandError> {
    match (store.signed(sides[0].id, id), store.signed(sides[1].id, id)) {
        (Ok(ours), Ok(theirs)) => Ok(Some([ours, theirs])),
        (Err(StoreError::Missing { .. }), _) | (_, Err(StoreError::Missing { .. })) => Ok(None),
        (Err(error), _) | (_, Err(error)) => Err(error.into()),
    }
}

impl MergeReport {
    /// After the merge is recorded: what it was signed with is trusted from now on.
    fn new(
        outcome: Outcome,
        branch: Option<String>,
        merged: Merged,
        store: &Store,
        arguments: &MergeArguments,
    ) -> Result<Self, CommandError> {
        let Merged { patch, stacked, judged, agreement, beside, signer, .. } = merged;
        let signature = signer.filter(|_| patch.is_some()).as_ref().map(Signer::settle).transpose();
        Ok(Self {
            outcome,
            branch,
            signature: signature.map_err(CommandError::after_the_work)?,
            commit: head_after_change(store)?,
            stacked,
            trust: judged.into_iter().map(|judged| judged.report).collect(),
            agreement,
            files_kept: beside.kept,
            files_left_out: beside.left_out,
            words: arguments.trust.words(),
        })
    }
}

/// What the user allowed for any of the patches, each once: the merged one does not tell that it is made of a
/// stranger's.
fn notes(judged: &[Permitted]) -> Vec<String> {
    let notes: BTreeSet<String> = judged.iter().flat_map(Permitted::notes).collect();
    notes.into_iter().collect()
}

/// What a merge has come to.
#[derive(Default)]
struct Merged {
    /// Patches whose states are known, in order.
    series: Vec<PatchId>,
    /// On top of them; none where the series has all.
    patch: Option<Patch>,
    /// The patches that went into it.
    stacked: Vec<PatchId>,
    /// What the signatures say of those, in the same order.
    judged: Vec<Permitted>,
    agreement: Agreement,
    /// Who was right where they contradict each other, for the commit.
    decided: Vec<String>,
    beside: Beside,
    /// Who has signed the patch.
    signer: Option<Signer>,
}

/// What a merged state is made of.
struct Plan {
    /// Patches whose states are known, in order.
    series: Vec<PatchId>,
    /// Patches beyond them, to be one.
    beyond: Vec<PatchId>,
    sides: [Side; 2],
}

/// A state that needs no new patch, since it is one of the two.
struct Side {
    series: Vec<PatchId>,
    /// The same, with sums as their parts where that matters.
    unfolded: Vec<PatchId>,
}

/// The series of the side that comes of these patches, where one does: each is there once, and a side may have
/// applied them in another order.
fn side_of<'s>(sides: &'s [Side], patches: &[PatchId]) -> Option<&'s [PatchId]> {
    let set = |patches: &[PatchId]| patches.iter().copied().collect::<BTreeSet<_>>();
    let wanted = set(patches);
    sides.iter().find(|side| set(&side.unfolded) == wanted).map(|side| side.series.as_slice())
}

/// A commit that both sides were made of, as near to them as any.
struct Fork {
    series: Vec<PatchId>,
    /// Of two sides that have merged each other, which have several of these: what this one and the others go back to.
    before: Vec<Vec<PatchId>>,
}

impl Fork {
    /// All of two commits.
    fn all(store: &Store, ours: CommitId, theirs: CommitId) -> Result<Vec<Self>, CommandError> {
        let forks = |one: CommitId, others: &[CommitId]| -> Result<Vec<CommitId>, CommandError> {
            let mut forks = store.forks(one, others)?;
            forks.retain(|fork| store.is_state(*fork));
            Ok(forks)
        };
        let nearest = forks(ours, &[theirs])?;
        let series = |id: &CommitId| Ok(store.commit(*id)?.series);
        let fork = |id: &CommitId| {
            let others: Vec<CommitId> = nearest.iter().filter(|other| *other != id).copied().collect();
            let before = if others.is_empty() { Vec::new() } else { forks(*id, &others)? };
            let before = before.iter().map(series).collect::<Result<_, CommandError>>()?;
            Ok(Self { series: series(id)?, before })
        };
        nearest.iter().map(fork).collect()
    }
}

/// Leaves out what another patch of these holds already: there is nothing to add. Where a side has both, it has the
/// update twice, and they stay.
fn without_held(mut all: Vec<PatchId>, sides: [&[PatchId]; 2], origins: &Origins) -> Vec<PatchId> {
    let has_both =
        |one: &PatchId, other: &PatchId| sides.iter().any(|side| side.contains(one) && side.contains(other));
    let below = all.iter().flat_map(|holder| origins.below(*holder).into_iter().map(move |id| (id, holder)));
    let held: BTreeSet<PatchId> =
        below.filter(|(id, holder)| !has_both(id, holder)).map(|(id, _)| id).collect();
    all.retain(|id| !held.contains(id));
    all
}

impl Plan {
    /// All patches of both, but those that one side took back.
    fn new(store: &Store, ours: &Commit, theirs: &Commit, origins: &Origins) -> Result<Self, CommandError> {
        Self::of(Fork::all(store, ours.id, theirs.id)?, &ours.series, &theirs.series, origins)
    }

    fn of(
        mut forks: Vec<Fork>,
        ours: &[PatchId],
        theirs: &[PatchId],
        origins: &Origins,
    ) -> Result<Self, CommandError> {
        let sides = [ours, theirs];
        let [mut ours, mut theirs] = sides.map(<[PatchId]>::to_vec);
        let of_forks = forks.iter_mut().flat_map(|fork| fork.before.iter_mut().chain([&mut fork.series]));
        origins.unfold(&mut of_forks.chain([&mut ours, &mut theirs]).collect::<Vec<_>>());
        let has = |side: &[PatchId], id| {
            side.contains(&id) || side.iter().any(|of| origins.below(*of).contains(&id))
        };
        // What one of several took back is not among what both sides come from: whoever has it has put it in again.
        let took_back =
            |fork: &Fork, id| fork.before.iter().any(|series| has(series, id)) && !has(&fork.series, id);
        let of_forks = forks.iter().flat_map(|fork| &fork.series).copied();
        let fork: BTreeSet<PatchId> =
            of_forks.filter(|id| !forks.iter().any(|fork| took_back(fork, *id))).collect();
        let taken_back = |id: &PatchId| fork.contains(id) && !(ours.contains(id) && theirs.contains(id));
        let new = theirs.iter().filter(|id| !ours.contains(id));
        let all: Vec<PatchId> = ours.iter().chain(new).filter(|id| !taken_back(id)).copied().collect();
        for id in fork.iter().filter(|id| !(has(&ours, **id) && has(&theirs, **id))) {
            if let Some(holder) = all.iter().find(|holder| origins.below(**holder).contains(id)) {
                return Err(cannot_take_out(*id, *holder));
            }
        }
        let all = without_held(all, [&ours, &theirs], origins);
        let known = all.iter().zip(sides[0]).zip(sides[1]);
        let shared = known.take_while(|((one, our), their)| one == our && one == their).count();
        let [our, their] = sides.map(<[PatchId]>::to_vec);
        let sides = [Side { series: our, unfolded: ours }, Side { series: their, unfolded: theirs }];
        let (series, beyond) = match side_of(&sides, &all) {
            Some(series) => (series.to_vec(), Vec::new()),
            None => (all[..shared].to_vec(), all[shared..].to_vec()),
        };
        Ok(Self { series, beyond, sides })
    }

    /// The weights after the series, in a passing place where the model is in another state.
    fn common(
        &self,
        store: &Store,
        passing: &PassingFolder,
        arguments: &MergeArguments,
        output: &Output,
    ) -> Result<Checkpoint, CommandError> {
        let path = model_path_by("--base MODEL", store, arguments.base.as_deref())?;
        let checkpoint = open_checkpoint(&path, output)?;
        let atlas = crate::standing::atlas(store, &[], output)?;
        let located = locate(&atlas, &checkpoint, false, output)?;
        let steps = way(&series_at(&atlas, &located.standing, &path, &self.series)?, &self.series);
        if steps.is_empty() {
            return Ok(checkpoint);
        }
        let place = passing.path().join("common");
        // What the merged patch is made on is no result.
        walk(store, checkpoint, &steps, &place, || (), &arguments.trust, output)?;
        open_checkpoint(&place, output)
    }

    /// One patch of those beyond, bound to the weights of the common beginning; none where those that are not left out
    /// are one side's own.
    fn stacked(
        self,
        store: &Store,
        atlas: &Atlas,
        origins: &Origins,
        arguments: &MergeArguments,
        signer: Option<&mut Signer>,
        output: &Output,
    ) -> Result<Merged, CommandError> {
        let passing = PassingFolder::create(store.folder())?;
        let base = self.common(store, &passing, arguments, output)?;
        let patches = self.beyond.iter().map(|id| Ok((id.short(), store.patch(*id)?)));
        let patches = patches.collect::<Result<Vec<_>, CommandError>>()?;
        // The merged patch carries the signature of whoever merges, so what goes into it has to be trusted first.
        let mut lines = Lines::default();
        let mut idle = Vec::new();
        let judge = |(name, patch): &(String, Patch)| {
            let path = std::path::Path::new(name);
            let trust = arguments.trust.for_one_of_several(patch, &mut idle)?;
            require_among(patch, path, Company::History, &mut lines, &trust, output)
        };
        let judged = patches.iter().map(judge).collect::<Result<Vec<_>, _>>()?;
        let named: Vec<Named<'_>> = patches.iter().map(|(name, patch)| Named { name, patch }).collect();
        let sides = arguments.sides.sides(output)?;
        let reached = origins.reached(atlas, &self.series, &self.beyond);
        let touched = touched_size_bytes(&base, patches.iter().map(|(_, patch)| patch));
        let progress = output.progress("stacking", base.weights_size_bytes() + touched);
        let told = |bytes| progress.add(bytes);
        let plan = plan_among(&base, &named, &reached, &sides, &told)
            .map_err(|error| arguments.sides.refused(error, refused))?;
        let left_out: BTreeSet<PatchId> =
            plan.patches().iter().filter(|patch| patch.left_out).map(|patch| patch.id).collect();
        let stands = |id: &PatchId| !left_out.contains(id);
        let all: Vec<PatchId> = self.series.iter().chain(&self.beyond).copied().filter(stands).collect();
        if plan.partly_lost().next().is_none()
            && let Some(series) = side_of(&self.sides, &all)
        {
            let agreement = Agreement::new(plan, Vec::new(), OVERLAP_ANGLE_DEGREES);
            let (series, decided) = (series.to_vec(), agreement.notes(&sides));
            return Ok(Merged { series, agreement, decided, ..Merged::default() });
        }
        let options = AddOptions { tool: TOOL.to_owned(), overlaps: true, ..AddOptions::default() };
        let added = plan.add(&base, &named, &options, &told).map_err(refused)?;
        drop(progress);
        let Stacked { plan, overlaps, draft, .. } = added;
        let agreement = Agreement::new(plan, overlaps, OVERLAP_ANGLE_DEGREES);
        let patch = encoded(&draft, "the merged patch")?;
        let (stacked, judged) = self.beyond.iter().zip(judged).filter(|(id, _)| stands(id)).unzip();
        let patch = match signer {
            Some(signer) => signed(patch, signer)?,
            None => patch,
        };
        let (series, patch, decided) = (self.series, Some(patch), agreement.notes(&sides));
        Ok(Merged { series, patch, stacked, judged, agreement, decided, ..Merged::default() })
    }
}

/// The merged patch with a signature.
fn signed(patch: Patch, signer: &mut Signer) -> Result<Patch, CommandError> {
    signer.keep()?;
    signer.sign_into(patch, "the merged patch").map_err(|error| signer.with_word_of_key(error))
}

/// One side took back what the other one has in a patch that cannot be taken apart.
fn cannot_take_out(id: PatchId, holder: PatchId) -> CommandError {
    let (id, holder) = (id.short(), holder.short());
    let message = format!(
        "one of the two took patch {id} back, and the other one has it as part of {holder}, which is no sum of patches"
    );
    CommandError::new(ExitKind::Conflict, message).hint(format!(
        "take {holder} back with `mpatch revert`, and make it again without the facts of {id}, or put {id} back, before you merge"
    ))
}

/// As `stack` has it, but for what to do: nobody chose these patches, and merging has fewer options.
fn refused(error: StackError) -> CommandError {
    let hint = match &error {
        // What files and patches ask for is the same wherever they are read.
        StackError::Checkpoint(_)
        | StackError::Patch { .. }
        | StackError::Bind(_)
        | StackError::ChosenByNeither(_) => return stack_error(error),
        // The weights are those of the common beginning: what is missing below a patch is not in the merged state.
        StackError::OtherBase { .. } => {
            let hint = "what that patch was made on was taken back, was left out by an earlier merge, or is part of another one: take that patch back on its branch with `mpatch revert`, merge, bind it to the result with `mpatch rebase`, and `mpatch add` it";
            return CommandError { kind: ExitKind::Conflict, ..stack_error(error).hint(hint) };
        }
        StackError::Contradictions(_) => "choose a side with `--ours`, `--theirs` or `--choose FACTS`",
        StackError::PartlyLost { lost, facts, .. } if lost == facts => {
            "patches that stand were made on top of it: let its side be right, or make those again without it"
        }
        StackError::PartlyLost { .. } => {
            "make that patch again without the facts that lose, and add it instead"
        }
        StackError::Correction { .. } => {
            "a patch between two checkpoints holds on its own state only: check that state out and make it anew"
        }
        StackError::Held { .. } => {
            "a branch has both, and so the update twice: take one of the two back there with `mpatch revert` before you merge"
        }
        StackError::Shared { .. } => {
            "both sides have it, each bound to its own state: take it back on one of them with `mpatch revert` before you merge"
        }
        _ => "`mpatch show REVISION` tells what is in a state",
    };
    stack_error(error).hint(hint)
}

impl Report for MergeReport {
    const SCHEMA: &'static str = "mpatch.merge/1";

    fn write(&self, page: &mut Page) {
        match self.outcome {
            Outcome::AlreadyThere => page.title("nothing to merge: all of it is here already"),
            Outcome::FastForward => page.title("went forward: the other branch goes on from this one"),
            Outcome::Merged => match self.stacked.len() {
                0 => page.title("merged"),
                1 => page.title("merged: 1 patch, bound to the common beginning anew"),
                patches => page.title(&format!("merged: {patches} patches became one, with one rounding")),
            },
        }
        self.commit.write(page, self.branch.as_deref(), 5);
        self.agreement.write(true, page);
        for file in &self.files_kept {
            page.line(&format!("warning: both sides have changed `{file}`, and it stays as it is here"));
        }
        for (file, other) in &self.files_left_out {
            page.line(&format!(
                "warning: `{file}` of the other side has no room beside `{other}`, and was left out"
            ));
        }
        for (patch, trust) in
            self.stacked.iter().zip(&self.trust).filter(|(_, trust)| !trust.allowed.is_empty())
        {
            page.line(&format!("{}: {}", patch.short(), trust.line()));
        }
        if let Some(signature) = self.signature.as_ref().filter(|signature| signature.is_news()) {
            signature.write(page);
        }
    }

    fn next(&self) -> Option<String> {
        Some(format!("mpatch checkout HEAD -o MODEL{}", self.words))
    }
}

#[cfg(test)]
mod tests {
    use mpatch::bind::BindError;
    use mpatch::checkpoint::CheckpointError;
    use mpatch::factors::FactorError;
    use mpatch::tensor::Dtype;

    use super::*;

    #[test]
    fn what_cannot_be_merged_ends_with_the_codes_of_stack() {
        let kind = |error: StackError| refused(error).kind;
        let busy = CheckpointError::Busy { path: "model.safetensors".into() };
        assert_eq!(kind(busy.into()), ExitKind::Busy);
        let correction = || StackError::Correction { name: "a".to_owned(), tensor: "b".to_owned() };
        assert_eq!(kind(correction()), ExitKind::Conflict);
        let hint = refused(correction()).hint.expect("a hint");
        assert!(!hint.contains("--drop-corrections"), "merge has no such option: {hint}");
        assert_eq!(kind(StackError::NothingLeft), ExitKind::Conflict);
        let overflow = FactorError::Overflow { row: 0, column: 0, dtype: Dtype::F16, value: 1e6 };
        let overflow = BindError::Factors { tensor: "a".to_owned(), source: overflow };
        let found = refused(overflow.into());
        assert_eq!(
            (found.kind, found.hint.map(|hint| hint.contains("BF16"))),
            (ExitKind::WrongBase, Some(true))
        );
    }

    #[test]
    fn a_merge_keeps_what_either_side_added_and_drops_what_either_took_back() {
        let [a, b, c, d, e] = ["a", "b", "c", "d", "e"].map(|name| PatchId::derive(name.as_bytes()));
        let [m, n, o] = ["m", "n", "o"].map(|name| PatchId::derive(name.as_bytes()));
        // Merged patches: two that share `b`, and one of a merged patch and another.
        let origins = Origins::of_sums(&[(m, &[a, b]), (n, &[c, b]), (o, &[m, d])]);
        let plan_from = |forks: &[(&[PatchId], &[PatchId])], ours: &[PatchId], theirs: &[PatchId]| {
            let fork = |(series, before): &(&[PatchId], &[PatchId])| Fork {
                series: series.to_vec(),
                before: vec![before.to_vec()],
            };
            let forks = forks.iter().map(fork).collect();
            let Plan { series, beyond, .. } = Plan::of(forks, ours, theirs, &origins).expect("a plan");
            (series, beyond)
        };
        let plan =
            |fork: &[PatchId], ours: &[PatchId], theirs: &[PatchId]| plan_from(&[(fork, &[])], ours, theirs);
        assert_eq!(plan(&[a], &[a, b], &[a, c]), (vec![a], vec![b, c]));
        assert_eq!(plan(&[a], &[a, b], &[]), (vec![], vec![b]));
        assert_eq!(plan(&[a, b], &[a], &[a, b, c]), (vec![a], vec![c]));
        assert_eq!(plan(&[a], &[a, b], &[a]), (vec![a, b], vec![]));
        assert_eq!(plan(&[a, b], &[a], &[a]), (vec![a], vec![]));
        assert_eq!(plan(&[], &[a, b], &[c, d]), (vec![], vec![a, b, c, d]));
        // A part of a merged patch is taken back on the branch that it came from, or goes on there.
        assert_eq!(plan(&[b], &[m], &[]), (vec![], vec![a]));
        assert_eq!(plan(&[b], &[], &[m]), (vec![], vec![a]));
        assert_eq!(plan(&[b], &[m, c], &[b, d]), (vec![], vec![a, b, c, d]));
        assert_eq!(plan(&[b], &[m], &[b]), (vec![m], vec![]));
        assert_eq!(plan(&[e, b], &[e, m], &[e, b, d]), (vec![e], vec![a, b, d]));
        // Both sides have it in a merged patch of their own.
        assert_eq!(plan(&[b], &[m], &[n]), (vec![], vec![a, b, c]));
        assert_eq!(plan(&[m], &[o], &[m, e]), (vec![], vec![m, d, e]));
        // One side has all of it already, in another order.
        assert_eq!(plan(&[b], &[b], &[n]), (vec![n], vec![]));
        assert_eq!(plan(&[b], &[n], &[b]), (vec![n], vec![]));
        assert_eq!(plan(&[b], &[o], &[b, c]), (vec![], vec![a, b, d, c]));
        // Nothing else touches its parts: it stays one.
        assert_eq!(plan(&[m], &[m, c], &[m, d]), (vec![m], vec![c, d]));
        assert_eq!(plan(&[], &[m], &[c]), (vec![], vec![m, c]));
        // Two that have merged each other: one takes all back, or puts a part in again.
        let crossed: [(&[PatchId], &[PatchId]); 2] = [(&[a], &[]), (&[b], &[])];
        for (ours, theirs, left) in
            [(&[m][..], &[][..], &[][..]), (&[m], &[a], &[a]), (&[m], &[b], &[b]), (&[m, c], &[], &[c])]
        {
            for [ours, theirs] in [[ours, theirs], [theirs, ours]] {
                let (series, beyond) = plan_from(&crossed, ours, theirs);
                assert_eq!([series, beyond].concat(), left);
            }
        }
        // One had taken a patch back before that, and a side has put it in again.
        assert_eq!(plan_from(&[(&[a], &[a]), (&[], &[a])], &[a], &[]), (vec![a], vec![]));
        // What was solved for again for the facts of several is no sum of them, but holds them.
        let origins = Origins::of_solved(&[(m, &[a, b])]);
        for (ours, theirs, left) in [
            (&[m][..], &[a][..], (vec![m], vec![])),
            (&[a], &[m], (vec![m], vec![])),
            (&[m], &[a, c], (vec![], vec![m, c])),
            (&[a, m], &[c], (vec![], vec![a, m, c])),
        ] {
            let Plan { series, beyond, .. } = Plan::of(vec![], ours, theirs, &origins).expect("a plan");
            assert_eq!((series, beyond), left);
        }
        assert_eq!(
            Plan::of(vec![Fork { series: vec![b], before: vec![] }], &[m], &[], &origins)
                .err()
                .map(|error| error.kind),
            Some(ExitKind::Conflict)
        );
    }
}
