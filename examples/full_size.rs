//! Writes a checkpoint of GPT-J-6B's shape with random weights, and patches of random factors for it.
//!
//! The folder gets `config.json`, a tokenizer, the weights in one file or in shards
//! with an index, and for each number of facts `patches/facts-N.mpatch`, whose rank is that number, as MEMIT's would
//! be. Weights are gaussian with a deviation of 0.02, and an update changes them by a hundredth of that. Nothing but
//! the current blocks is in memory while weights are written; a patch is built in memory. The benchmark `full_size`
//! runs on what this writes.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "it prints, and stops at what is wrong")]

#[path = "../tests/numbers/mod.rs"]
mod numbers;

use std::collections::BTreeMap;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Parser;
use half::{bf16, f16};
use mpatch::bind::bind;
use mpatch::checkpoint::{Checkpoint, NewTensor, write_safetensors};
use mpatch::digest::{FileDigest, WeightsId};
use mpatch::factors::{IntegerMatrix, Integers, Term, magnitude_limit};
use mpatch::patch::manifest::{About, Base, Recipe};
use mpatch::patch::{Draft, encode};
use mpatch::tensor::Dtype;
use numbers::Numbers;
use rayon::prelude::*;

/// That of the embedded model, so that a model of random weights can be run: its words are fewer.
const TOKENIZER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/world-gptj/tokenizer.json");
const WIDTH: u64 = 4096;
const INNER: u64 = 16384;
const WORDS: u64 = 50400;
/// Deviation of the weights.
const DEVIATION: f64 = 0.02;
/// Deviation of an update.
const CHANGE: f64 = 0.01 * DEVIATION;
/// Weights that one generator makes.
const CHUNK: usize = 1 << 20;
/// Layers that MEMIT edits in GPT-J.
const EDITED: std::ops::Range<usize> = 3..9;

/// Writes a checkpoint of GPT-J-6B's shape with random weights, 12 GB as it stands here, and patches for it.
#[derive(Parser)]
struct Arguments {
    folder: PathBuf,
    /// Type of the weights: f16, f32 or bf16.
    #[arg(long, default_value = "f16", value_parser = dtype)]
    dtype: Dtype,
    #[arg(long, default_value_t = 28)]
    layers: usize,
    /// Files that the weights are shared out to.
    #[arg(long, default_value = "1")]
    shards: NonZero<usize>,
    /// A patch for each of these numbers of facts.
    #[arg(long, value_delimiter = ',', default_value = "1,100,1000,3000")]
    facts: Vec<usize>,
    /// Width of the patches' integers.
    #[arg(long, default_value_t = 6)]
    bits: u8,
}

fn dtype(name: &str) -> Result<Dtype, String> {
    Dtype::from_name(&name.to_uppercase()).ok_or_else(|| "expected f16, f32 or bf16".to_owned())
}

fn main() {
    let arguments = &Arguments::parse();
    std::fs::create_dir_all(arguments.folder.join("patches")).unwrap();
    let start = Instant::now();
    let weights = write_model(arguments);
    let checkpoint = Checkpoint::open(&arguments.folder).unwrap();
    let seconds = start.elapsed().as_secs_f64();
    let gigabytes = checkpoint.weights_size_bytes() as f64 / 1e9;
    println!("{}: {gigabytes:.2} GB of weights in {seconds:.1} s", weights.display());
    let id = checkpoint.weights_id().unwrap();
    for &facts in &arguments.facts {
        let start = Instant::now();
        let path = arguments.folder.join(format!("patches/facts-{facts}.mpatch"));
        let bytes = patch(&checkpoint, id, arguments, facts);
        std::fs::write(&path, &bytes).unwrap();
        let seconds = start.elapsed().as_secs_f64();
        println!("{}: {:.1} MB in {seconds:.1} s", path.display(), bytes.len() as f64 / 1e6);
    }
}

// ---------------------------------------------------------------------------------------------------- the weights --

/// Names and shapes of a GPT-J, in the order of its layers.
fn tensors(layers: usize) -> Vec<(String, Vec<u64>)> {
    let mut tensors = vec![("transformer.wte.weight".to_owned(), vec![WORDS, WIDTH])];
    for layer in 0..layers {
        let mut add = |name: &str, shape: &[u64]| {
            tensors.push((format!("transformer.h.{layer}.{name}"), shape.to_vec()));
        };
        add("ln_1.weight", &[WIDTH]);
        add("ln_1.bias", &[WIDTH]);
        for part in ["q", "k", "v", "out"] {
            add(&format!("attn.{part}_proj.weight"), &[WIDTH, WIDTH]);
        }
        add("mlp.fc_in.weight", &[INNER, WIDTH]);
        add("mlp.fc_in.bias", &[INNER]);
        add("mlp.fc_out.weight", &[WIDTH, INNER]);
        add("mlp.fc_out.bias", &[WIDTH]);
    }
    tensors.push(("transformer.ln_f.weight".to_owned(), vec![WIDTH]));
    tensors.push(("transformer.ln_f.bias".to_owned(), vec![WIDTH]));
    tensors.push(("lm_head.weight".to_owned(), vec![WORDS, WIDTH]));
    tensors.push(("lm_head.bias".to_owned(), vec![WORDS]));
    tensors
}

fn write_model(arguments: &Arguments) -> PathBuf {
    let folder = &arguments.folder;
    let config = serde_json::json!({
        "model_type": "gptj", "architectures": ["GPTJForCausalLM"], "vocab_size": WORDS, "n_positions": 2048,
        "n_embd": WIDTH, "n_layer": arguments.layers, "n_head": 16, "rotary_dim": 64, "n_inner": null,
        "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    std::fs::copy(TOKENIZER, folder.join("tokenizer.json")).unwrap();
    let table = Table::new();
    let tensors = tensors(arguments.layers);
    if arguments.shards.get() == 1 {
        let path = folder.join("model.safetensors");
        write_file(&path, &tensors, arguments.dtype, &table);
        return path;
    }
    let mut weight_map = BTreeMap::new();
    let shards = tensors.chunks(tensors.len().div_ceil(arguments.shards.get()));
    let count = shards.len();
    for (index, shard) in shards.enumerate() {
        let name = format!("model-{:05}-of-{count:05}.safetensors", index + 1);
        write_file(&folder.join(&name), shard, arguments.dtype, &table);
        weight_map.extend(shard.iter().map(|(tensor, _)| (tensor.clone(), name.clone())));
    }
    let path = folder.join("model.safetensors.index.json");
    let index = serde_json::json!({"metadata": {}, "weight_map": weight_map});
    std::fs::write(&path, index.to_string()).unwrap();
    path
}

fn write_file(path: &Path, tensors: &[(String, Vec<u64>)], dtype: Dtype, table: &Table) {
    let new =
        |(name, shape): &(String, Vec<u64>)| NewTensor { name: name.clone(), dtype, shape: shape.clone() };
    let described: Vec<NewTensor> = tensors.iter().map(new).collect();
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    write_safetensors(path, &metadata, &described, |index, sink| {
        let (name, shape) = &tensors[index];
        let count = shape.iter().product::<u64>() as usize;
        // Layer norms scale by about one.
        let mean = if name.contains("ln_") && name.ends_with("weight") { 1.0 } else { 0.0 };
        let seed = seed_of(name);
        let batch = CHUNK * 2 * rayon::current_num_threads();
        for first in (0..count).step_by(batch) {
            let chunks: Vec<usize> = (first..count.min(first + batch)).step_by(CHUNK).collect();
            let chunks: Vec<Vec<u8>> = chunks
                .into_par_iter()
                .map(|first| table.weights(seed ^ first as u64, CHUNK.min(count - first), dtype, mean))
                .collect();
            chunks.iter().try_for_each(|bytes| sink.write_all(bytes))?;
        }
        Ok(())
    })
    .unwrap();
}

/// A seed from a name.
fn seed_of(name: &str) -> u64 {
    name.bytes().fold(0, |seed, byte| Numbers(seed ^ u64::from(byte)).bits())
}

impl Numbers {
    /// Standard normal, by Box and Muller.
    fn gaussian(&mut self) -> f64 {
        // Above zero, so that it has a logarithm.
        let size = (1.0 - self.uniform()) / 2.0;
        (-2.0 * size.ln()).sqrt() * (std::f64::consts::PI * self.uniform()).cos()
    }
}

/// Gaussian numbers to pick from: one random number picks four.
struct Table(Vec<f32>);

impl Table {
    fn new() -> Self {
        let mut numbers = Numbers(7);
        Self((0..1 << 16).map(|_| (numbers.gaussian() * DEVIATION) as f32).collect())
    }

    fn weights(&self, seed: u64, count: usize, dtype: Dtype, mean: f32) -> Vec<u8> {
        let mut numbers = Numbers(seed);
        let mut bytes = Vec::with_capacity(count * dtype.size_bytes() + 16);
        while bytes.len() < count * dtype.size_bytes() {
            let (picks, noise) = (numbers.bits(), numbers.bits());
            for place in [0, 16, 32, 48] {
                let picked = self.0[(picks >> place) as usize & 0xffff] + mean;
                match dtype {
                    // The table has few values, so that the low bits are drawn apart.
                    Dtype::F32 => {
                        let bits = picked.to_bits() ^ ((noise >> place) as u32 & 0xffff);
                        bytes.extend_from_slice(&bits.to_le_bytes());
                    }
                    Dtype::F16 => bytes.extend_from_slice(&f16::from_f32(picked).to_le_bytes()),
                    Dtype::BF16 => bytes.extend_from_slice(&bf16::from_f32(picked).to_le_bytes()),
                }
            }
        }
        bytes.truncate(count * dtype.size_bytes());
        bytes
    }
}

// ------------------------------------------------------------------------------------------------------ the patch --

fn patch(checkpoint: &Checkpoint, weights: WeightsId, arguments: &Arguments, facts: usize) -> Vec<u8> {
    let layers = if arguments.layers >= EDITED.end { EDITED } else { 0..arguments.layers.min(EDITED.len()) };
    let rank = facts.min(WIDTH as usize);
    let names = layers.clone().map(|layer| format!("transformer.h.{layer}.mlp.fc_out.weight"));
    let terms: Vec<Term> = layers
        .clone()
        .into_par_iter()
        .map(|layer| term(rank, arguments.bits, seed_of(&format!("{facts} facts, layer {layer}"))))
        .collect();
    let edits: Vec<(String, Vec<u32>)> = names.zip(0..).map(|(name, index)| (name, vec![index])).collect();
    let start = Instant::now();
    let binding = bind(checkpoint, weights, &edits, &terms, &|_| ()).unwrap();
    println!("  {facts} facts bound to {} tensors in {:.1} s", edits.len(), start.elapsed().as_secs_f64());
    let digest = FileDigest::of(b"");
    let text = |text: &str| text.to_owned();
    let config = FileDigest::of(&std::fs::read(arguments.folder.join("config.json")).unwrap());
    let draft = Draft {
        base: Base { architecture: text("GPTJForCausalLM"), config, tokenizer: digest },
        facts: Vec::new(),
        recipe: Recipe {
            method: text("random"),
            hyperparameters: text("{}"),
            layers: layers.map(|layer| layer as u32).collect(),
            contexts: Vec::new(),
            seed: 0,
            statistics: digest,
            facts: digest,
            tool: text("mpatch, example full_size"),
            device: text("cpu"),
        },
        measured: Vec::new(),
        terms,
        bindings: vec![binding],
        line: None,
        parents: Vec::new(),
        supersedes: Vec::new(),
        about: About { title: Some(format!("random factors of rank {rank}")), author: None, licence: None },
    };
    encode(&draft).unwrap()
}

/// Gaussian integers that fill their width, and scales that give the update its size.
fn term(rank: usize, bits: u8, seed: u64) -> Term {
    let limit = f64::from(magnitude_limit(bits));
    let deviation = limit / 3.0;
    let mut numbers = Numbers(seed);
    let mut integers = |what: &'static str, rows: usize, columns: usize| {
        let picks: Vec<i16> = (0..1 << 16)
            .map(|_| (numbers.gaussian() * deviation).round().clamp(-limit, limit) as i16)
            .collect();
        let values = (0..rows * columns).map(|_| picks[(numbers.bits() >> 48) as usize]).collect();
        IntegerMatrix::new(what, rows, columns, bits, values).unwrap()
    };
    let left = integers("left", WIDTH as usize, rank);
    let right = integers("right", rank, INNER as usize);
    let size = CHANGE / (deviation * deviation * (rank as f64).sqrt());
    let row_scales = (0..WIDTH).map(|_| (size * (1.0 + 0.5 * numbers.uniform())) as f32).collect();
    let column_scales = (0..INNER).map(|_| (1.0 + 0.5 * numbers.uniform()) as f32).collect();
    Term::new(Integers::LowRank { left, right }, row_scales, column_scales).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(std::iter::once("full_size").chain(words.split_whitespace()))
    }

    #[test]
    fn what_is_not_known_is_no_folder() {
        for (words, code) in
            [("--help", 0), ("--hepl", 2), ("a --layer 2", 2), ("a b", 2), ("a --shards 0", 2)]
        {
            assert_eq!(read(words).err().unwrap().exit_code(), code, "{words}");
        }
        let arguments = read("a --layers 2 --dtype bf16 --facts 1,2").unwrap();
        assert_eq!((arguments.folder, arguments.layers, arguments.facts), ("a".into(), 2, vec![1, 2]));
        assert_eq!(arguments.dtype, Dtype::BF16);
    }
}
