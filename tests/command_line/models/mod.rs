//! Models that are refused: by what is missing, of another kind, or no number.

use std::fs;
use std::path::Path;

use mpatch::checkpoint::{Checkpoint, Layout};
use serde_json::json;

use crate::bad_input::{EDITED, bench_with_model, create_refuses};
use crate::bench::{Bench, Refusal};
use crate::material::{TENSOR, alter_header, alter_weights, lay_out, lay_out_editing};

/// A weight that no edit touches, and every text goes through.
const UNEDITED: &str = "transformer.h.5.mlp.fc_in.weight";

#[test]
fn a_model_that_answers_nan_is_refused_whatever_it_is_asked() {
    let bench = bench_with_model();
    alter_weights(&bench.path("model/model.safetensors"), UNEDITED, &[0x7e00]);
    let words = ["not a number", "NaN or infinities", "fetch the model again"];
    bench.refuses("eval facts.json --base model", 3).says(&words);
    bench.write("contexts.json", r#"[["{}"]]"#);
    bench.write("corpus.txt", "One good line.\n");
    let options = " --layers 0 --contexts contexts.json --corpus corpus.txt";
    let output = bench.command(&format!("create facts.json --base model -o new.mpatch{options}")).output();
    let refusal = Refusal { stderr: String::from_utf8(output.unwrap().stderr).unwrap() };
    refusal.says(&["fact 1, "]);
    refusal.says(&words);
    let bench = Bench::empty();
    lay_out_editing(bench.folder.path());
    alter_weights(&bench.path("model/model.safetensors"), UNEDITED, &[0x7e00]);
    bench.refuses("try edits.mpatch --base model Who", 3).says(&words);
}

/// The embedded model altered by `alter` is refused with `code`.
fn model_refused(alter: impl FnOnce(&Path), code: i32, words: &[&str]) {
    let bench = bench_with_model();
    alter(&bench.path("model"));
    create_refuses(&bench, "", code).says(words);
}

#[test]
fn a_folder_that_is_no_model_is_refused() {
    let remove = |name: &'static str| move |folder: &Path| fs::remove_file(folder.join(name)).unwrap();
    model_refused(remove("config.json"), 3, &["`model`", "`config.json`", "all its files"]);
    model_refused(remove("tokenizer.json"), 3, &["`model`", "`tokenizer.json`", "`vocab.json`"]);
    model_refused(remove("model.safetensors"), 3, &["`model`", "not a checkpoint"]);
    model_refused(|folder| fs::remove_dir_all(folder).unwrap(), 11, &["`model`", "check the path"]);
}

#[test]
fn another_architecture_is_refused_by_name() {
    let bench = bench_with_model();
    bench.alter_json(
        "model/config.json",
        json!({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}),
    );
    create_refuses(&bench, "", 15).says(&["config.json", "`LlamaForCausalLM`", "`GPTJForCausalLM`"]);
}

#[test]
fn a_missing_tensor_is_named_with_the_nearest_one() {
    let lose = |folder: &Path| {
        alter_header(&folder.join("model.safetensors"), |header| {
            let tensor = header.remove(EDITED).unwrap();
            header.insert("transformer.h.0.mlp.fc_uot.weight".to_owned(), tensor);
        });
    };
    let words = ["`model", EDITED, "the nearest name is `transformer.h."];
    model_refused(lose, 3, &words);
}

#[test]
fn a_tensor_of_another_shape_is_refused_with_both_shapes() {
    let turn = |folder: &Path| {
        let shape = json!([512, 128]);
        alter_header(&folder.join("model.safetensors"), |header| header[EDITED]["shape"] = shape);
    };
    model_refused(turn, 3, &["`model", EDITED, "[512, 128]", "[128, 512]"]);
}

#[test]
fn weights_with_more_blocks_than_the_config_counts_are_refused() {
    let bench = bench_with_model();
    bench.alter_json("model/config.json", json!({"n_layer": 7}));
    create_refuses(&bench, "", 3).says(&["`model", "`transformer.h.7.", "beyond the 7", "`n_layer`"]);
}

#[test]
fn a_tensor_of_integers_is_refused_by_its_type() {
    let retype = |folder: &Path| {
        alter_header(&folder.join("model.safetensors"), |header| header[EDITED]["dtype"] = json!("I16"));
    };
    model_refused(retype, 3, &["`model", EDITED, "I16", "F32, F16 or BF16"]);
}

#[test]
fn weights_that_are_nan_are_refused_before_the_long_work() {
    let (nan, infinity, fine) = (0x7e00, 0xfc00, 0x3c00);
    let break_two = |folder: &Path| {
        alter_weights(&folder.join("model.safetensors"), EDITED, &[fine, fine, nan, fine, infinity]);
    };
    let words = ["`model", EDITED, "2 NaN or infinite weights", "row 0, column 2"];
    // There are no statistics either: the weights are what is looked at first.
    model_refused(break_two, 3, &words);
}

#[test]
fn a_tokenizer_that_knows_more_words_than_the_model_is_refused() {
    let bench = bench_with_model();
    bench.alter_json("model/config.json", json!({"vocab_size": 1000}));
    create_refuses(&bench, "", 3).says(&["tokenizer", "2047", "1000 words"]);
    bench.write("model/tokenizer.json", "{}");
    create_refuses(&bench, "", 3).says(&["`model", "tokenizer"]);
}

#[test]
fn what_is_no_safetensors_file_is_called_what_it_is() {
    let bench = bench_with_model();
    lay_out(bench.folder.path());
    let patch = fs::read(bench.path("edits.mpatch")).unwrap();
    let config = fs::read(bench.path("model/config.json")).unwrap();
    for (start, what, hint) in [
        (&b"PK\x03\x04\0\0\x08\x08\0\0"[..], "PyTorch's own format", "safe_serialization=True"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j", "PyTorch's own format", "safe_serialization=True"),
        (POINTER.as_bytes(), "a pointer of git-lfs", "`git lfs pull`"),
        (b"GGUF\x03\0\0\0", "GGUF", "safe_serialization=True"),
        (b"\x89HDF\r\n\x1a\n", "HDF5", "safe_serialization=True"),
        (b"<!DOCTYPE html>\n", "a web page", "fetch the `.safetensors` file itself"),
        (&config, "a file of JSON", "give the model's folder"),
        (&patch, "`weights` is not a safetensors file, but a patch", "give the model first"),
        // What may be the size of a header is one.
        (b"\x80\x02\0\0\0\0\0\0{", "the header claims 640 bytes", "fetch the checkpoint again"),
    ] {
        fs::write(bench.path("weights"), start).unwrap();
        bench.refuses("apply weights edits.mpatch", 3).says(&[what, hint]);
    }
}

/// What git-lfs leaves in the place of a file that it has not fetched.
const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 24202517\n";

#[test]
fn a_folder_without_safetensors_is_refused_by_what_its_weights_are() {
    let bench = bench_with_model();
    fs::rename(bench.path("model/model.safetensors"), bench.path("model/pytorch_model.bin")).unwrap();
    bench.write("model/optimizer.pt", "");
    create_refuses(&bench, "", 3)
        .says(&["`pytorch_model.bin` in it is a safetensors file", "give that file"]);
    for (name, bytes, what, hint) in [
        (
            "pytorch_model.bin",
            POINTER,
            "`model/pytorch_model.bin` is not a safetensors file, but a pointer",
            "`git lfs pull`",
        ),
        ("pytorch_model.bin", "PK\x03\x04\0\0\x08\x08", "PyTorch's own format", "safe_serialization=True"),
        ("flax_model.msgpack", "\u{1}", "`model/flax_model.msgpack`", "`.safetensors` files"),
    ] {
        _ = fs::remove_file(bench.path("model/pytorch_model.bin"));
        bench.write(&format!("model/{name}"), bytes);
        create_refuses(&bench, "", 3).says(&[what, hint]);
    }
}

#[test]
fn a_pointer_of_git_lfs_is_called_one_wherever_it_lies() {
    for (file, words) in [
        ("edits.mpatch", "show edits.mpatch"),
        ("facts.json", "eval facts.json --base model"),
        ("model/tokenizer.json", "eval facts.json --base model"),
        ("model/config.json", "eval facts.json --base model"),
        ("model.safetensors.index.json", "init --base model.safetensors.index.json"),
    ] {
        let bench = bench_with_model();
        bench.write(file, POINTER);
        bench.refuses(words, 3).says(&[file, "`git lfs pull`"]);
    }
}

#[test]
fn an_adapter_is_not_taken_for_the_model_that_lies_beside_it() {
    let bench = bench_with_model();
    let (weights, other) = (bench.path("model/model.safetensors"), bench.path("model/gptj.safetensors"));
    fs::rename(&weights, &other).unwrap();
    bench.write("model/adapter_model.safetensors", "an adapter");
    assert!(Checkpoint::open(bench.path("model")).is_ok());
    bench.write("model/pytorch_model.bin", "PK\x03\x04");
    create_refuses(&bench, "", 3).says(&["both `gptj.safetensors` and `pytorch_model.bin`"]);
    fs::remove_file(&other).unwrap();
    create_refuses(&bench, "", 3).says(&["`model/pytorch_model.bin`", "safe_serialization=True"]);
    fs::remove_file(bench.path("model/pytorch_model.bin")).unwrap();
    create_refuses(&bench, "", 3).says(&["an adapter, `adapter_model.safetensors`, and no model"]);
}

#[test]
fn the_shards_of_a_variant_are_a_checkpoint_like_others() {
    let bench = bench_with_model();
    fs::rename(bench.path("model/model.safetensors"), bench.path("model/model.fp16-1.safetensors")).unwrap();
    let index = json!({"weight_map": {EDITED: "model.fp16-1.safetensors"}}).to_string();
    bench.write("model/model.safetensors.index.fp16.json", &index);
    for path in [bench.path("model"), bench.path("model/model.safetensors.index.fp16.json")] {
        let checkpoint = Checkpoint::open(path).unwrap();
        assert_eq!((checkpoint.layout(), checkpoint.files().len()), (Layout::Folder, 1));
    }
}

#[test]
fn tensors_that_are_all_called_otherwise_are_named_as_they_are_here() {
    let bench = Bench::new();
    let file = bench.path("model.safetensors");
    let short = TENSOR.strip_prefix("transformer.").unwrap();
    alter_header(&file, |header| {
        let tensor = header.remove(TENSOR).unwrap();
        header.insert(short.to_owned(), tensor);
    });
    let words = "apply model.safetensors edits.mpatch";
    bench.refuses(words, 6).says(&["is missing", &format!("the same tensors are called `{short}`")]);
    alter_header(&file, |header| {
        let tensor = header.remove(short).unwrap();
        header.insert("other".to_owned(), tensor);
    });
    let refused = bench.refuses(words, 6);
    refused.says(&["is missing", "`mpatch show edits.mpatch` tells which base it is for\n"]);
}

#[test]
fn a_cache_of_downloads_is_read_where_the_model_is_and_not_written_to() {
    let bench = Bench::new();
    fs::create_dir_all(bench.path("cache/refs")).unwrap();
    fs::create_dir(bench.path("cache/blobs")).unwrap();
    fs::create_dir_all(bench.path("cache/snapshots/0ld")).unwrap();
    fs::rename(bench.path("gptj"), bench.path("cache/snapshots/abc")).unwrap();
    bench.write("cache/refs/main", "abc");
    for folder in ["cache", "cache/snapshots"] {
        let refused = bench.refuses(&format!("apply {folder} edits.mpatch -o new"), 3);
        refused.says(&["not a checkpoint", "the model lies in `cache/snapshots/abc`"]);
    }
    fs::copy(bench.path("model.safetensors"), bench.path("cache/blobs/05c5")).unwrap();
    for path in ["cache/snapshots/abc", "cache/snapshots/abc/model.safetensors", "cache/blobs/05c5"] {
        bench.refuses(&format!("apply {path} edits.mpatch"), 2).says(&["a cache of downloads", "`-o`"]);
    }
}

#[test]
fn a_damaged_checkpoint_is_refused() {
    let cut = |folder: &Path| {
        let file = folder.join("model.safetensors");
        let bytes = fs::read(&file).unwrap();
        fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    };
    model_refused(cut, 3, &["`model/model.safetensors`", "not a valid safetensors file"]);
}
