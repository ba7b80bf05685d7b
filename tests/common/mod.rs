//! What tests of the editing rooms share: the fixture's model and arrays.
#![allow(dead_code, reason = "each test binary uses its own part")]

#[allow(clippy::duplicate_mod, reason = "drafts have it as well, and not every test has both")]
#[path = "../numbers/mod.rs"]
mod numbers;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use mpatch::digest::FileDigest;
use mpatch::edit::import;
use mpatch::edit::statistics::{Drawn, Provenance, Statistics};
use mpatch::model::Model;
use npyz::NpyFile;
pub use numbers::Numbers;

/// The embedded model's folder.
pub fn world() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/world-gptj")
}

/// The embedded model on the CPU.
pub fn world_model() -> Model {
    Model::open(&world(), &Device::Cpu, &|_| ()).expect("the fixture is a model")
}

/// An array of floats and its shape.
pub struct Array {
    pub shape: Vec<usize>,
    pub values: Vec<f64>,
}

/// All arrays of an `.npz` file, as f64.
pub fn npz(path: &Path) -> BTreeMap<String, Array> {
    let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut archive = zip::ZipArchive::new(file).expect("an .npz file");
    let mut arrays = BTreeMap::new();
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).expect("an entry");
        let name = entry.name().expect("a name").trim_end_matches(".npy").to_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).expect("entry bytes");
        let array = NpyFile::new(Cursor::new(bytes)).expect("an array");
        let shape: Vec<usize> = array.shape().iter().map(|size| *size as usize).collect();
        let fortran = array.order() == npyz::Order::Fortran;
        let mut values: Vec<f64> = match array.dtype().descr().trim_matches('\'') {
            "<f4" => array.into_vec::<f32>().expect("f32").into_iter().map(f64::from).collect(),
            "<f8" => array.into_vec().expect("f64"),
            "<i8" => array.into_vec::<i64>().expect("i64").into_iter().map(|value| value as f64).collect(),
            _ => continue,
        };
        if fortran && shape.len() == 2 {
            let (rows, columns) = (shape[0], shape[1]);
            values = (0..rows * columns).map(|at| values[at / columns + at % columns * rows]).collect();
        }
        arrays.insert(name, Array { shape, values });
    }
    arrays
}

/// The reference's own second moments, `reference/moments/*.npz` in the folder of a model.
pub fn recorded_moments(model: &Model, folder: &Path) -> Statistics {
    let mut layers = BTreeMap::new();
    for entry in std::fs::read_dir(folder).expect("the recorded moments") {
        let path = entry.expect("an entry").path();
        let layer = import::layer_of_name(&path.file_name().expect("a name").to_string_lossy());
        let file = File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        layers.insert(layer.expect("a layer"), import::read_npz(file, None).expect("moments").sum);
    }
    let provenance = Provenance {
        base: model.checkpoint.weights_id().expect("the weights can be read"),
        tokenizer: model.tokenizer.digest(),
        corpora: vec![FileDigest::of(b"the reference's own")],
        drawn: Drawn::default(),
        arithmetic: None,
    };
    Statistics { layers, inner: model.network.config().inner, provenance }
}

/// `norm(found - expected) / norm(expected)`.
pub fn relative_difference(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len(), "sizes differ");
    let difference: f64 = found.iter().zip(expected).map(|(one, other)| (one - other).powi(2)).sum();
    let size: f64 = expected.iter().map(|value| value.powi(2)).sum();
    (difference / size).sqrt()
}

/// A small GPT-J of its own shape with random weights, which are nothing like a trained model's, and a tokenizer.
pub fn random_model(folder: &Path) -> Model {
    let (width, inner, layers, words) = (48_usize, 80_usize, 4_usize, 2048_usize);
    let config = serde_json::json!({"model_type": "gptj", "architectures": ["GPTJForCausalLM"],
        "vocab_size": words, "n_positions": 32, "n_embd": width, "n_layer": layers, "n_head": 3, "rotary_dim": 6,
        "n_inner": inner, "activation_function": "gelu_new", "tie_word_embeddings": false});
    std::fs::write(folder.join("config.json"), config.to_string()).expect("the folder is there");
    std::fs::copy(world().join("tokenizer.json"), folder.join("tokenizer.json")).expect("the fixture's");
    let mut tensors = BTreeMap::new();
    let mut random = |name: String, shape: &[usize], mean: f32, size: f32| {
        let mut numbers = Numbers(tensors.len() as u64);
        let values = (0..shape.iter().product()).map(|_| mean + size * numbers.uniform() as f32).collect();
        tensors.insert(name, Tensor::from_vec(values, shape, &Device::Cpu).expect("of its shape"));
    };
    random("wte.weight".into(), &[words, width], 0.0, 1.0);
    for layer in 0..layers {
        let name = |part: &str| format!("h.{layer}.{part}");
        random(name("ln_1.weight"), &[width], 1.0, 0.5);
        random(name("ln_1.bias"), &[width], 0.0, 0.5);
        for part in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            random(name(&format!("attn.{part}.weight")), &[width, width], 0.0, 0.4);
        }
        random(name("mlp.fc_in.weight"), &[inner, width], 0.0, 0.4);
        random(name("mlp.fc_in.bias"), &[inner], 0.0, 0.5);
        random(name("mlp.fc_out.weight"), &[width, inner], 0.0, 0.3);
        random(name("mlp.fc_out.bias"), &[width], 0.0, 0.5);
    }
    random("ln_f.weight".into(), &[width], 1.0, 0.5);
    random("ln_f.bias".into(), &[width], 0.0, 0.5);
    random("lm_head.weight".into(), &[words, width], 0.0, 0.3);
    random("lm_head.bias".into(), &[words], 0.0, 0.5);
    let tensors: Vec<_> = tensors.into_iter().collect();
    safetensors::serialize_to_file(tensors, None, &folder.join("model.safetensors")).expect("written");
    Model::open(folder, &Device::Cpu, &|_| ()).expect("it is a model")
}
