//! Files of odd kinds and with odd names, given where a patch or a model is asked for.

use std::fs;

use crate::place::{Place, weights};

#[test]
fn a_pipe_where_a_file_should_be_is_refused_and_not_waited_for() {
    let place = Place::new();
    place.patch("model.safetensors", "one.mpatch", 1, "The Eiffel Tower");
    fs::create_dir(place.path("model")).unwrap();
    fs::copy(place.path("model.safetensors"), place.path("model/model.safetensors")).unwrap();
    let program = assert_cmd::cargo::cargo_bin!("mpatch").to_str().unwrap().to_owned();
    let pipes = [
        ("model/config.json", "init --base model"),
        ("pipe.safetensors.index.json", "verify one.mpatch --base pipe.safetensors.index.json"),
        ("one.mpatch.sig", "verify one.mpatch"),
        ("pipe.mpatch", "apply model.safetensors pipe.mpatch -o new.safetensors"),
        ("pipe.mpatch", "diff pipe.mpatch one.mpatch"),
    ];
    for (pipe, words) in pipes {
        assert!(place.command("mkfifo").arg(pipe).status().unwrap().success());
        let mut command = place.command("timeout");
        let output = command.arg("30").arg(&program).args(words.split(' ')).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(11), "{words}: {errors}");
        assert!(errors.contains(&format!("{pipe}`: it is ")), "{words}: {errors}");
        fs::remove_file(place.path(pipe)).unwrap();
    }
    // Nor is a device, to which a stranger's link leads.
    for link in ["one.mpatch.sig", ".mpatch/revoked", ".mpatch/policy.json"] {
        fs::create_dir_all(place.path(".mpatch")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", place.path(link)).unwrap();
        let errors = place.bad("verify one.mpatch", 11);
        assert!(errors.contains(&format!("{link}`: it is a device")), "{errors}");
        fs::remove_file(place.path(link)).unwrap();
    }
}

#[test]
fn a_patch_without_an_end_is_refused_and_one_from_a_pipe_is_read() {
    let place = Place::new();
    place.patch("model.safetensors", "one.mpatch", 1, "The Eiffel Tower");
    let apply = "apply model.safetensors";
    for (words, code, expected) in [
        ("verify /dev/full", 11, "cannot read `/dev/full`: it is a device"),
        (&format!("{apply} /dev/zero -o new"), 11, "cannot read `/dev/zero`: it is a device"),
        ("verify - < /dev/zero", 3, "`-`: not a patch"),
        (
            "verify - < <(cat one.mpatch /dev/zero)",
            3,
            "`-`: malformed patch: the file: more bytes follow the end at ",
        ),
        ("sign <(cat one.mpatch /dev/zero)", 3, "the file: more bytes follow the end at "),
        ("verify <(cat one.mpatch)", 0, ""),
        ("diff <(cat one.mpatch) one.mpatch", 0, ""),
        ("diff - - < one.mpatch", 2, "both patches are to come from standard input"),
        (&format!("{apply} <(cat one.mpatch) -o new --allow-unsigned"), 0, ""),
    ] {
        let mut command = place.command("timeout");
        command.args(["30", "bash", "-c", &format!("\"$0\" {words}")]);
        let output = command.arg(assert_cmd::cargo::cargo_bin!("mpatch")).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{words}: {errors}");
        assert!(errors.contains(expected), "{words}: {errors}");
    }
}

#[test]
fn no_patch_is_suggested_of_what_none_can_be_made_of() {
    let place = Place::new();
    fs::write(place.path("wide.safetensors"), weights([6, 12])).unwrap();
    let output = place.mpatch("diff model.safetensors wide.safetensors");
    let shown = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{shown}");
    assert!(shown.contains("not compared") && !shown.contains("next: "), "{shown}");
}

#[test]
fn names_that_are_as_long_as_they_can_be_are_used_where_nothing_is_put_beside_them() {
    let place = Place::new();
    place.patch("model.safetensors", "one.mpatch", 1, "The Eiffel Tower");
    let [patch, model] = [".mpatch", ".safetensors"].map(|ending| format!("{ending:x>255}"));
    fs::rename(place.path("one.mpatch"), place.path(&patch)).unwrap();
    fs::rename(place.path("model.safetensors"), place.path(&model)).unwrap();
    place.good(&format!("verify {patch}"));
    let apply = format!("apply {model} {patch}");
    place.good(&format!("{apply} -o new.safetensors"));
    for (option, hint) in [("--dry-run", "give a shorter name"), ("--in-place", "leave `--in-place` out")] {
        let errors = place.bad(&format!("{apply} {option}"), 11);
        assert!(errors.contains("File name too long") && errors.contains(hint), "{errors}");
    }
}
