//! How often `verify` loads the model: a model of any size takes a while to load.

use std::mem::MaybeUninit;
use std::path::Path;

use rustix::fs::inotify;

use super::{bench, says};

/// How often `verify` reads the tokenizer before it loads a model: whether it is there, and the one of the patch.
const LOOKED_AT: usize = 1;

/// How often a file is opened while `work` is done.
fn times_opened(path: &Path, work: impl FnOnce()) -> usize {
    let watch = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
    // Two openings in a row are told as one, so the closing between them is watched as well.
    let flags = inotify::WatchFlags::OPEN | inotify::WatchFlags::CLOSE;
    inotify::add_watch(&watch, path, flags).unwrap();
    work();
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut events = inotify::Reader::new(watch, &mut buffer);
    let told = std::iter::from_fn(|| events.next().ok().map(|event| event.events()));
    told.filter(|event| event.contains(inotify::ReadFlags::OPEN)).count()
}

#[test]
fn the_rungs_that_run_the_model_load_it_once() {
    let bench = bench();
    bench.command("apply model/model.safetensors two.mpatch -o model/edited.safetensors").assert().success();
    for base in ["model", "model/edited.safetensors"] {
        // Whoever loads the model reads its tokenizer.
        let opened = times_opened(&bench.path("model/tokenizer.json"), || {
            let said =
                bench.verify("two.mpatch", &format!("{base} --stats statistics.safetensors --rederive"), 0);
            says(&said, &["holds: V0 and V1 and V2 and V3 and V4 and V5"]);
        });
        assert_eq!(opened, LOOKED_AT + 1, "{base}");
    }
}

#[test]
fn a_recipe_of_another_precision_is_followed_in_it_and_the_model_asked_in_the_one_asked_for() {
    let bench = bench();
    let create = "create facts.json --base model --contexts contexts.json --stats statistics.safetensors";
    bench.command(&format!("{create} --precision bf16 -o bf16.mpatch")).assert().success();
    bench.command("apply model/model.safetensors bf16.mpatch -o model/edited.safetensors").assert().success();
    for base in ["model", "model/edited.safetensors"] {
        for (precision, loads, asked) in
            [("", 2, "2 facts: "), (" --precision bf16", 1, "2 facts, asked on cpu bf16: ")]
        {
            let options = format!("{base} --stats statistics.safetensors --rederive{precision}");
            let opened = times_opened(&bench.path("model/tokenizer.json"), || {
                let said = bench.verify("bf16.mpatch", &options, 0);
                says(
                    &said,
                    &[
                        "V4 behaves   holds",
                        asked,
                        "made again from its recipe on cpu bf16: 3 tensors, the same, byte",
                    ],
                );
            });
            assert_eq!(opened, LOOKED_AT + loads, "{options}");
        }
    }
}
