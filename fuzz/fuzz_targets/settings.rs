#![no_main]

use mpatch::edit::contexts::Contexts;
use mpatch::edit::hyperparameters::Hyperparameters;
use mpatch::model::Config;

// A byte for the kind of file, then its text.
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((kind, text)) = data.split_first() else { return };
    match kind % 3 {
        0 => drop(Hyperparameters::parse(text)),
        1 => drop(Contexts::parse(text)),
        _ => drop(Config::parse(text)),
    }
});
