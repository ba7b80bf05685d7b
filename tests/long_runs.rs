//! Work that takes hours: interrupted, shared out, or begun with what earlier runs kept, it gives the same result.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod common;
mod material;

use std::fs;
use std::io::{BufReader, Cursor};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use common::{relative_difference, world, world_model};
use material::lay_out_editing;
use mpatch::digest::FileDigest;
use mpatch::edit::contexts::Contexts;
use mpatch::edit::hyperparameters::Hyperparameters;
use mpatch::edit::kept::{FactorCache, Kept, ValueLog};
use mpatch::edit::statistics::{Amount, Shard, Statistics, StatisticsFile, collect_part, merge};
use mpatch::edit::value::optimise;
use mpatch::edit::{Edit, EditError, FactPrompt, Plan, memit, memit_with};
use mpatch::facts::FactsFile;
use mpatch::model::Model;

fn facts(count: usize) -> Vec<FactPrompt> {
    let records = FactsFile::parse(&fs::read(world().join("records.json")).unwrap()).unwrap().records;
    records.iter().take(count).map(|record| FactPrompt::from(&record.request)).collect()
}

fn hyperparameters() -> Hyperparameters {
    Hyperparameters::parse(&fs::read(world().join("memit.json")).unwrap()).unwrap()
}

fn contexts() -> Contexts {
    Contexts::parse(&fs::read(world().join("reference/n10/contexts.json")).unwrap()).unwrap()
}

/// The first lines of the corpus.
fn corpus(lines: usize) -> BufReader<Cursor<Vec<u8>>> {
    let text = fs::read_to_string(world().join("corpus.txt")).unwrap();
    let text: String = text.split_inclusive('\n').take(lines).collect();
    BufReader::new(Cursor::new(text.into_bytes()))
}

fn statistics(model: &Model, folder: &Path) -> StatisticsFile {
    let base = model.checkpoint.weights_id().unwrap();
    let path = folder.join("statistics.safetensors");
    let made = collect_part(model, base, &[0, 1, 2], &mut corpus(60), Amount::All, None, &|_| ()).unwrap();
    made.write(&path).unwrap();
    StatisticsFile::open(&path).unwrap()
}

/// Every number of an edit, as its bits.
fn bits(edit: &Edit) -> Vec<u64> {
    let mut bits: Vec<u64> =
        edit.values.iter().flat_map(|value| &value.hidden).map(|entry| u64::from(entry.to_bits())).collect();
    for layer in &edit.layers {
        bits.extend(layer.product().iter().map(|entry| entry.to_bits()));
    }
    bits
}

/// The only file in `folder` with that ending, or all of them.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return vec![] };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|found| found == ending)).collect()
}

#[test]
fn what_is_kept_changes_no_bit_of_an_edit_and_is_remade_where_it_is_damaged() {
    let model = world_model();
    let folder = tempfile::tempdir().unwrap();
    let statistics = statistics(&model, folder.path());
    let (hyperparameters, contexts, facts) = (hyperparameters(), contexts(), facts(3));
    let make = |kept: Kept<'_>| {
        let plan = Plan::new(&model, &hyperparameters, &contexts, &facts).unwrap();
        memit_with(plan, &statistics, kept, &|_| ()).unwrap()
    };
    let alone = bits(&memit(&model, &hyperparameters, &contexts, &facts, &statistics, &|_| ()).unwrap());
    let factors = FactorCache::new(folder.path(), 1 << 30, "this");
    let with_log = || {
        let log = ValueLog::open(folder.path(), FileDigest::of(b"inputs"), 1 << 30).unwrap().unwrap();
        let known = log.values();
        (bits(&make(Kept { factors: Some(&factors), values: Some(&log) })), known)
    };
    assert_eq!(with_log(), (alone.clone(), 0), "cold");
    assert_eq!(with_log(), (alone.clone(), 3), "warm");
    for path in files(folder.path(), "factor").iter().chain(&files(folder.path(), "values")) {
        let mut bytes = fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).unwrap();
    }
    assert_eq!(files(folder.path(), "factor").len(), 3);
    let (damaged, known) = with_log();
    assert!(known < 3 && damaged == alone, "damaged");
    assert_eq!(with_log(), (alone, 3), "mended");
}

#[test]
fn a_value_is_the_same_whatever_runs_beside_it_up_to_the_order_of_sums() {
    let model = world_model();
    let facts = facts(4);
    let values = |facts: &[FactPrompt]| optimise(&model, &hyperparameters(), &contexts(), facts).unwrap();
    let together = values(&facts);
    for (fact, expected) in facts.iter().zip(&together) {
        let alone = values(std::slice::from_ref(fact)).remove(0);
        assert_eq!(alone.steps, expected.steps, "{}", fact.subject);
        let widen = |values: &[f32]| values.iter().map(|value| f64::from(*value)).collect::<Vec<_>>();
        let difference = relative_difference(&widen(&alone.hidden), &widen(&expected.hidden));
        assert!(difference < 1e-5, "{}: {difference:e}", fact.subject);
    }
}

#[test]
fn shards_add_up_to_what_one_run_gives() {
    let model = world_model();
    let base = model.checkpoint.weights_id().unwrap();
    let folder = tempfile::tempdir().unwrap();
    for amount in [Amount::Tokens(1500), Amount::Documents(20), Amount::All] {
        let run =
            |shard| collect_part(&model, base, &[0, 1], &mut corpus(40), amount, shard, &|_| ()).unwrap();
        let whole = run(None);
        let part = |index: u32| {
            let path = folder.path().join(format!("{index}.safetensors"));
            run(Some(Shard { index, count: 3 })).write(&path).unwrap();
            StatisticsFile::open(&path).unwrap()
        };
        let merged = |order: [u32; 3]| -> Statistics { merge(&order.map(part)).unwrap() };
        let sum = merged([2, 3, 1]);
        assert_eq!(sum.provenance, whole.provenance, "{amount}");
        assert_eq!(sum, merged([3, 1, 2]), "{amount}: the order of the files changes the sum");
        for (layer, expected) in &whole.layers {
            let found = &sum.layers[layer];
            assert_eq!(found.count, expected.count, "{amount}, layer {layer}");
            let widen = |sum: &[f32]| sum.iter().map(|entry| f64::from(*entry)).collect::<Vec<_>>();
            let difference = relative_difference(&widen(&found.sum), &widen(&expected.sum));
            assert!(difference < 1e-6, "{amount}, layer {layer}: {difference:e}");
        }
        match amount {
            Amount::Tokens(count) => assert!((count..count + 256).contains(&whole.layers[&0].count)),
            Amount::Documents(count) => assert_eq!(whole.provenance.drawn.documents, count),
            Amount::All => assert_eq!(whole.provenance.drawn.documents, 40),
        }
        let refused = |order: &[u32]| {
            let files: Vec<_> = order.iter().map(|index| part(*index)).collect();
            match merge(&files) {
                Err(EditError::Statistics { what } | EditError::Repeated { what }) => what,
                other => panic!("{other:?}"),
            }
        };
        assert!(refused(&[1, 3]).contains("shard 2/3 is missing"), "{}", refused(&[1, 3]));
        assert!(refused(&[1, 2, 2, 3]).contains("both hold shard 2/3"));
    }
}

/// What is collected in layer 0 of documents that stand on lines of their own.
fn collected(model: &Model, lines: &[&str], amount: Amount) -> Result<Statistics, EditError> {
    let base = model.checkpoint.weights_id().unwrap();
    let mut corpus = BufReader::new(Cursor::new(lines.join("\n").into_bytes()));
    collect_part(model, base, &[0], &mut corpus, amount, None, &|_| ())
}

#[test]
fn documents_are_drawn_from_all_over_a_corpus_until_there_are_tokens_enough() {
    let model = world_model();
    let text = fs::read_to_string(world().join("corpus.txt")).unwrap();
    let lines: Vec<&str> = text.lines().take(30).collect();
    let of = |amount| collected(&model, &lines, amount).unwrap();
    let three = of(Amount::Documents(3));
    let tokens = three.layers[&0].count;
    assert_eq!(three.provenance.drawn.documents, 3);
    let exactly = of(Amount::Tokens(tokens));
    assert_eq!((exactly.provenance.drawn.documents, &exactly.layers), (3, &three.layers));
    assert_eq!(of(Amount::Tokens(tokens + 1)).provenance.drawn.documents, 4);
    let first = collected(&model, &lines[..3], Amount::All).unwrap();
    assert_ne!(first.layers, three.layers, "a corpus is often sorted");
}

#[test]
fn a_document_counts_up_to_the_model_s_context_and_an_empty_one_not_at_all() {
    let model = world_model();
    let long = "The harp and the flute. ".repeat(100);
    for amount in [Amount::All, Amount::Documents(10)] {
        let found = collected(&model, &["", &long, "", "The harp"], amount).unwrap();
        let short = model.tokenizer.encode("The harp").unwrap().len() as u64;
        assert_eq!((found.layers[&0].count, found.provenance.drawn.documents), (256 + short, 2), "{amount}");
    }
    let refused =
        collected(&model, &["{\"text\": \"One.\"}", "", "{\"title\": \"no text\"}"], Amount::Documents(9));
    assert!(matches!(refused, Err(EditError::Corpus { line: 3, .. })), "{refused:?}");
}

#[test]
fn a_create_killed_at_any_time_goes_on_and_gives_the_same_patch() {
    let folder = tempfile::tempdir().unwrap();
    lay_out_editing(folder.path());
    fs::copy(world().join("records.json"), folder.path().join("records.json")).unwrap();
    let create = |cache: &str, patch: &str| {
        let mut command = material::command(assert_cmd::cargo::cargo_bin!("mpatch"));
        let arguments = "create records.json --limit 12 --base model --contexts contexts.json --stats";
        command.args(arguments.split(' ')).args(["statistics.safetensors", "-o", patch]);
        command.current_dir(folder.path()).env("MPATCH_CACHE_DIR", folder.path().join(cache));
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        command
    };
    assert!(create("calm", "calm.mpatch").status().unwrap().success());
    let logged = || files(&folder.path().join("killed/values"), "values").iter().map(size).sum::<u64>();
    let mut resumed = 0;
    for kill in 0..5_u64 {
        let mut child = create("killed", "killed.mpatch").spawn().unwrap();
        // Some die before they have done anything, some in the middle of a batch, some just behind one.
        wait(&mut child, Duration::from_millis(40 * (kill * 7 % 5)), || false);
        if kill % 2 == 0 {
            let before = logged();
            wait(&mut child, Duration::from_secs(60), || logged() > before.max(100));
            wait(&mut child, Duration::from_millis(kill * 13 % 29), || false);
        }
        let _ = child.kill();
        let ended = child.wait_with_output().unwrap();
        resumed += usize::from(String::from_utf8_lossy(&ended.stderr).contains("resuming"));
        if ended.status.success() {
            break;
        }
        assert!(!folder.path().join("killed.mpatch").exists(), "half a patch");
    }
    if !folder.path().join("killed.mpatch").exists() {
        let last = create("killed", "killed.mpatch").output().unwrap();
        assert!(last.status.success(), "{}", String::from_utf8_lossy(&last.stderr));
        resumed += usize::from(String::from_utf8_lossy(&last.stderr).contains("resuming"));
    }
    assert!(resumed > 0, "no run went on from another's values");
    let read = |patch: &str| fs::read(folder.path().join(patch)).unwrap();
    assert!(read("calm.mpatch") == read("killed.mpatch"), "the patches differ");
    assert_eq!(logged(), 0, "the log stays when its work is done");
}

fn size(path: &PathBuf) -> u64 {
    fs::metadata(path).map_or(0, |about| about.len())
}

/// Waits until `done`, the child has ended, or the time is up.
fn wait(child: &mut Child, time: Duration, done: impl Fn() -> bool) {
    let started = Instant::now();
    while started.elapsed() < time && !done() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(2));
    }
}
