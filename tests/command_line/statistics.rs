//! What `stats` makes, what is kept of it between runs, and what `create` takes of that.

use std::fs;

use crate::commands::{report_of, said_in};
use crate::material::{alter_header, alter_weights, lay_out_editing, mpatch};
use mpatch::checkpoint::Checkpoint;

#[test]
fn of_several_cached_statistics_those_of_most_tokens_by_the_model_s_tokenizer_are_taken() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    lay_out_editing(folder);
    let cache = folder.join("cache/statistics");
    fs::create_dir_all(&cache).unwrap();
    let base = Checkpoint::open(folder.join("model")).unwrap().weights_id().unwrap().short();
    let keep = |name: &str, tokens: u64, altered: Option<(&str, &str)>| {
        let path = cache.join(format!("{base}-{name}.safetensors"));
        fs::copy(folder.join("statistics.safetensors"), &path).unwrap();
        alter_header(&path, |header| {
            let metadata = header["__metadata__"].as_object_mut().unwrap();
            (0..3).for_each(|layer| {
                metadata.insert(format!("layer.{layer}.count"), tokens.to_string().into());
            });
            altered.map(|(name, word)| metadata.insert(name.to_owned(), word.into()));
        });
    };
    keep("z-few", 10, None);
    keep("most", 5000, None);
    keep("other", 9000, Some(("tokenizer", &"0".repeat(64))));
    keep("part", 9000, Some(("shard", "1/2")));
    keep("coarse", 9000, Some(("arithmetic", "cpu bf16")));
    let words = "create facts.json --limit 1 --base model --contexts contexts.json -o new.mpatch --no-sign";
    let output = mpatch().current_dir(folder).args(words.split(' ')).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains(&format!("statistics: cache/statistics/{base}-most.safetensors (cached)")),
        "{said}"
    );
}

#[test]
fn cached_statistics_are_kept_apart_by_what_they_were_computed_with_and_never_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    lay_out_editing(folder);
    let said = |options: &str| {
        let create = "create facts.json --limit 1 --base model --contexts contexts.json --corpus corpus.txt";
        let words = format!("{create} --tokens 500 -o new.mpatch --no-sign {options}");
        let words = Vec::from_iter(words.split_whitespace());
        let _ = fs::remove_file(folder.join("new.mpatch"));
        let output = mpatch().current_dir(folder).args(words).output().unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    let bf16 = said("--precision bf16");
    assert!(bf16.contains("statistics: computing") && bf16.contains("-cpu_bf16-0_1_2.safetensors"), "{bf16}");
    let f32 = said("");
    assert!(f32.contains("statistics: computing") && f32.contains("-cpu-0_1_2.safetensors"), "{f32}");
    let bf16 = said("--precision bf16");
    assert!(bf16.contains("-cpu_bf16-0_1_2.safetensors (cached)"), "{bf16}");
    let files = || -> Vec<std::path::PathBuf> {
        let entries = fs::read_dir(folder.join("cache/statistics")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    };
    let is_coarse = |path: &&std::path::PathBuf| path.to_string_lossy().contains("bf16");
    fs::remove_file(files().iter().find(is_coarse).unwrap()).unwrap();
    let bf16 = said("--precision bf16");
    assert!(bf16.contains("-cpu-0_1_2.safetensors (cached, computed on cpu)"), "{bf16}");

    let first = files().remove(0);
    alter_header(&first, |header| header["__metadata__"]["documents"] = "9".into());
    let before = fs::read(&first).unwrap();
    let stats = "stats corpus.txt --base model --tokens 500";
    let [one, again] = [(); 2].map(|()| report_of(folder, stats));
    let output = one["output"].as_str().unwrap();
    assert!(output.ends_with(&format!(".{}.safetensors", &one["digest"].as_str().unwrap()[..12])), "{one}");
    assert_eq!((&again, files().len()), (&one, 2));
    assert_eq!(fs::read(&first).unwrap(), before);
}

#[test]
fn too_little_text_for_statistics_is_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    lay_out_editing(folder.path());
    fs::write(folder.path().join("little.txt"), "The harp.\nThe flute.\n").unwrap();
    let words = "stats little.txt --base model --layers 0 --documents 5 -o little.safetensors";
    let said = said_in(folder.path(), &Vec::from_iter(words.split(' ')), &[]);
    assert!(
        said.contains("warning: `little.txt` gives only 2 of 5 documents that were asked for\n"),
        "{said}"
    );
    assert!(
        said.contains(
            "tokens are fewer than a key has numbers, 512: a ridge is added, and neighbours are harmed more\n"
        ),
        "{said}"
    );
}

#[test]
fn what_of_a_text_is_left_out_is_said_and_other_weights_are_no_base_of_what_is_merged() {
    let folder = tempfile::tempdir().unwrap();
    lay_out_editing(folder.path());
    let run = |words: &str| said_in(folder.path(), &Vec::from_iter(words.split(' ')), &[]);
    fs::write(folder.path().join("long.txt"), format!("The harp.\n{}\n", "The flute. ".repeat(500))).unwrap();
    let said = run("stats long.txt --base model --layers 0 --tokens all -o long.safetensors");
    assert!(
        said.contains("1 of 2 documents of `long.txt` are longer than the model's context, 256 tokens"),
        "{said}"
    );
    fs::write(folder.path().join("other.txt"), "The harp.\n").unwrap();
    run("stats other.txt --base model --layers 0 --tokens all -o other.safetensors");
    let merge = "stats --merge long.safetensors other.safetensors --base";
    let said = run(&format!("{merge} model -o merged.safetensors"));
    assert!(said.contains("wrote merged.safetensors"), "{said}");
    alter_weights(&folder.path().join("model/model.safetensors"), crate::bad_input::EDITED, &[0x3c00]);
    let said = run(&format!("{merge} model -o another.safetensors"));
    assert!(said.contains("the statistics were made on weights"), "{said}");
}

#[test]
fn two_files_of_one_layer_are_not_imported() {
    let folder = tempfile::tempdir().unwrap();
    lay_out_editing(folder.path());
    let moments = folder.path().join("moments/transformer.h.8.mlp.fc_out_float32_mom2_4000.npz");
    for count in ["100", "4000"] {
        let name = format!("transformer.h.0.mlp.fc_out_float32_mom2_{count}.npz");
        fs::copy(&moments, folder.path().join(name)).unwrap();
    }
    let words = "stats --import transformer.h.0.mlp.fc_out_float32_mom2_100.npz \
                 transformer.h.0.mlp.fc_out_float32_mom2_4000.npz --base model -o imported.safetensors";
    let said = said_in(folder.path(), &Vec::from_iter(words.split_whitespace()), &[]);
    assert!(
        said.contains(
            "mom2_4000.npz` is of layer 0, as `transformer.h.0.mlp.fc_out_float32_mom2_100.npz` is"
        ),
        "{said}"
    );
}
