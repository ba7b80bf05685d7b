//! What stock git has made of a history: commits that hold no state, branches that worktrees are on.

use std::fs;

use crate::place::Place;

/// A history whose branch `joined` stock git has made of two that do not fit each other.
fn joined(series: &str) -> Place {
    let place = Place::begun();
    place.patch("model.safetensors", "one.mpatch", 1, "The Eiffel Tower");
    place.patch("model.safetensors", "two.mpatch", 2, "The Louvre");
    place.good("branch other");
    place.good("add one.mpatch");
    place.good("checkout other");
    place.good("add two.mpatch");
    place.good("checkout main");
    place.git("worktree add -q wt -b joined main");
    let files = place.git("show --pretty= --name-only other -- patches");
    place.git(&format!(
        "-C wt checkout -q other -- {}",
        files.split_whitespace().collect::<Vec<_>>().join(" ")
    ));
    let listed = [place.git("show main:series"), place.git("show other:series")].concat();
    fs::write(place.path("wt/series"), format!("{listed}{series}")).unwrap();
    place.git("-C wt -c user.name=x -c user.email=y commit -qam joined");
    place
}

#[test]
fn a_commit_that_holds_no_state_is_passed_by_and_refused_where_it_is_asked_for() {
    for (series, code) in [("", 6), ("deadbeef\n", 3)] {
        let place = joined(series);
        place.git("worktree remove --force wt");
        place.git("init -q --bare bare.git");
        let id = &place.git("rev-parse --short=12 joined")[..12];
        let words = format!("the commit {id} (of branch `joined`) holds no state that can be");
        let named = format!("commit {} (of branch `joined`): ", place.git("rev-parse joined").trim());
        assert!(place.bad("fsck", 3).contains(&named));
        let output = place.mpatch("checkout HEAD -o model.copy.safetensors");
        let warned = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && warned.contains(&words), "{warned}");
        let errors = place.bad("checkout joined -o never.safetensors", code);
        assert!(errors.contains(&words) && !errors.contains("rebase"), "{errors}");
        place.good("push --to bare.git main other");
        assert!(place.bad("push joined", code).contains(&words));
        // An earlier version has sent it.
        place.good("clone bare.git copy");
        place.git("push -q bare.git joined");
        place.good("branch new other");
        place.good("push new");
        let output = place.mpatch("pull --store copy");
        let warned = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && warned.contains("bare.git`: the commit"), "{warned}");
        assert!(warned.contains(&words), "{warned}");
        let branches = place.good("branch --store copy");
        assert!(branches.contains("origin/new") && !branches.contains("joined"), "{branches}");
        place.good("clone bare.git another");
        place.good("branch -d joined");
        let output = place.mpatch("checkout HEAD -o model.again.safetensors");
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    }
}

#[test]
fn a_branch_that_a_worktree_is_on_is_not_gone_to_and_a_commit_without_a_name_is_told() {
    let place = joined("");
    let errors = place.bad("checkout joined", 7);
    assert!(errors.contains("worktree remove"), "{errors}");
    place.good("checkout HEAD~");
    place.patch("model.safetensors", "three.mpatch", 3, "The Atomium");
    place.good("add three.mpatch");
    let id = place.git("rev-parse --short=12 HEAD");
    let output = place.mpatch("checkout main");
    let warned = String::from_utf8(output.stderr).unwrap();
    assert!(warned.contains(&format!("`mpatch branch NAME {}` gives one", id.trim())), "{warned}");
    place.git("init -q --bare bare.git");
    assert!(place.good("push --to bare.git").contains("sent main"));
    assert!(place.good("push").contains("nothing to send"));
}

#[test]
fn a_commit_that_holds_no_state_is_no_damage_once_only_operations_lead_to_it() {
    let place = joined("");
    place.git("worktree remove --force wt");
    place.good("branch -d joined");
    let said = place.good("fsck");
    assert!(said.starts_with("whole: ") && said.contains("only operations lead to it"), "{said}");
    // On the current branch it is to be undone, since that cannot be deleted.
    place.good("undo");
    let joined = place.git("rev-parse joined");
    place.git(&format!("update-ref refs/heads/main {}", joined.trim()));
    assert!(place.bad("fsck", 3).contains("(of branch `joined`, branch `main`)"));
    for command in ["status model.safetensors", "checkout HEAD -o never.safetensors"] {
        assert!(
            place.bad(command, 6).contains(
                "hint: another program made it, as `git merge` joins lines and not states: `mpatch undo`"
            ),
            "{command}"
        );
    }
    place.good("undo");
    place.good("branch -d joined");
    assert!(place.good("fsck").starts_with("whole: "));
}
