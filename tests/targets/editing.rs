//! The targets that need the editing rooms, which take long to build.

use std::fs;
use std::io::Cursor;
use std::path::Path;

use mpatch::edit::contexts::Contexts;
use mpatch::edit::hyperparameters::Hyperparameters;
use mpatch::edit::import::read_npz;
use mpatch::edit::statistics::{Statistics, StatisticsFile, merge};
use mpatch::model::Config;

/// An archive of the reference's statistics: the sums are square, and of one text at least.
pub fn npz(data: &[u8]) {
    let Ok(imported) = read_npz(Cursor::new(data), None) else { return };
    assert_eq!(imported.sum.sum.len(), imported.inner * imported.inner);
    assert!(imported.sum.count > 0);
}

/// What an edit is told: a byte for the kind of file, then its text.
pub fn settings(data: &[u8]) {
    let Some((kind, text)) = data.split_first() else { return };
    match kind % 3 {
        0 => hyperparameters(text),
        1 => contexts(text),
        _ => config(text),
    }
}

/// What is read and written says the same: it stands in the recipe of a patch.
fn hyperparameters(text: &[u8]) {
    let Ok(read) = Hyperparameters::parse(text) else { return };
    let written = serde_json::to_vec(&read).expect("plain data");
    let again = Hyperparameters::parse(&written).expect("its own text");
    assert_eq!(serde_json::to_vec(&again).expect("plain data"), written);
}

/// Every template has one place for a prompt, and there is one at least.
fn contexts(text: &[u8]) {
    let Ok(read) = Contexts::parse(text) else { return };
    assert!(read.templates().next().is_some());
    assert!(read.templates().all(|template| template.matches("{}").count() == 1));
    assert_eq!(Contexts::new(read.groups().to_vec()).expect("it was checked"), read);
}

/// Heads share the width out evenly, positions turn a part of each, and hyperparameters fit any model.
fn config(text: &[u8]) {
    let Ok(read) = Config::parse(text) else { return };
    assert_eq!(read.head_width() * read.heads, read.width);
    assert!((2..=read.head_width()).contains(&read.rotary) && read.inner > 0 && read.positions > 0);
    let (hyperparameters, _) = Hyperparameters::for_model(&read);
    assert!(hyperparameters.value_layer() < read.layers && hyperparameters.v_loss_layer < read.layers);
}

/// A file of statistics: two bytes for the size of its header, then the header and the sums.
///
/// Every layer that is found is square, and what is written again is the same.
pub fn statistics(data: &[u8]) {
    let Some((size, rest)) = data.split_first_chunk::<2>() else { return };
    let size = u64::from(u16::from_le_bytes(*size));
    let folder = super::folder();
    let path = folder.path().join("statistics.safetensors");
    fs::write(&path, [&size.to_le_bytes()[..], rest].concat()).unwrap();
    let file = match StatisticsFile::open(&path) {
        Ok(file) => file,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let Ok(read) = file.load() else { return };
    check_file(&file, &read);
    let again = written(&read, &folder.path().join("again.safetensors"));
    assert_eq!(again.provenance, read.provenance);
    assert!(bits(&again) == bits(&read), "written again, it says something else");
    let twice = [file, StatisticsFile::open(&folder.path().join("again.safetensors")).unwrap()];
    assert!(merge(&twice).is_err(), "the same text is counted twice");
}

/// What a file says of its layers is what it holds.
fn check_file(file: &StatisticsFile, read: &Statistics) {
    let layers: Vec<usize> = file.counts().keys().copied().collect();
    assert!(layers.iter().eq(read.layers.keys()));
    file.check(read.provenance.base, read.inner, &layers).expect("it is of its own base and width");
    for layer in layers {
        assert_eq!(read.layers[&layer].sum.len(), read.inner * read.inner);
        assert!(read.layers[&layer].count > 0 && file.layer(layer).unwrap().count == file.counts()[&layer]);
        let moment = file.moment(layer).expect("it has been read");
        assert_eq!((moment.nrows(), moment.ncols()), (read.inner, read.inner));
    }
}

fn written(statistics: &Statistics, path: &Path) -> Statistics {
    statistics.write(path).expect("there is room");
    let file = StatisticsFile::open(path).expect("its own file");
    file.load().expect("its own file")
}

/// Sums by their bits, so that a NaN is itself.
fn bits(statistics: &Statistics) -> Vec<(usize, u64, Vec<u32>)> {
    let layers = statistics.layers.iter();
    layers
        .map(|(layer, sum)| (*layer, sum.count, sum.sum.iter().map(|entry| entry.to_bits()).collect()))
        .collect()
}
