//! MEMIT against the reference implementation's own numbers on the embedded model, before any rounding.
//!
//! The reference's spread over threads and precisions is 1e-6 (`reference/spread.json`); 1e-4 is asked for.
#![cfg(feature = "edit")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a failed step fails the test; figures help then"
)]

mod common;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{npz, random_model, recorded_moments, relative_difference, world, world_model};
use mpatch::causes::with_causes;
use mpatch::edit::contexts::Contexts;
use mpatch::edit::hyperparameters::Hyperparameters;
use mpatch::edit::kept::Kept;
use mpatch::edit::key_span::{KeySpan, KeySpans};
use mpatch::edit::statistics::{Amount, StatisticsFile, collect_part};
use mpatch::edit::{Delta, Edit, FactPrompt, LayerUpdate, Plan, keys_after, memit};
use mpatch::evaluate::{Extent, evaluate, texts};
use mpatch::factors::{BITS_DEFAULT, Compression, RankLimit, Term, Update, compress};
use mpatch::facts::FactsFile;
use mpatch::model::{Device, Model, Precision};

const TOLERANCE: f64 = 1e-4;

fn reference(facts: usize) -> std::path::PathBuf {
    world().join(format!("reference/n{facts}"))
}

/// The reference's own moments, as one statistics file.
fn recorded_statistics(model: &Model, folder: &Path) -> StatisticsFile {
    let moments = recorded_moments(model, &world().join("reference/moments"));
    assert!(moments.layers.keys().eq(&[0, 1, 2]) && moments.inner == 512);
    let path = folder.join("statistics.safetensors");
    moments.write(&path).unwrap();
    StatisticsFile::open(&path).unwrap()
}

fn facts(count: usize) -> Vec<FactPrompt> {
    let records: Vec<serde_json::Value> =
        serde_json::from_slice(&std::fs::read(world().join("records.json")).unwrap()).unwrap();
    let fact = |record: &serde_json::Value| {
        let rewrite = &record["requested_rewrite"];
        FactPrompt {
            prompt: rewrite["prompt"].as_str().unwrap().to_owned(),
            subject: rewrite["subject"].as_str().unwrap().to_owned(),
            target: format!(" {}", rewrite["target_new"]["str"].as_str().unwrap()),
        }
    };
    records.iter().take(count).map(fact).collect()
}

fn edit(model: &Model, count: usize) -> Edit {
    let folder = tempfile::tempdir().unwrap();
    let hyperparameters =
        Hyperparameters::parse(&std::fs::read(reference(count).join("hparams.json")).unwrap()).unwrap();
    let contexts = Contexts::parse(&std::fs::read(reference(count).join("contexts.json")).unwrap()).unwrap();
    let statistics = recorded_statistics(model, folder.path());
    memit(model, &hyperparameters, &contexts, &facts(count), &statistics, &|_| ()).unwrap()
}

#[test]
fn the_memory_foretold_is_that_of_the_precision() {
    let memory_size_bytes = |precision| {
        let model = Model::open_in(&world(), &Device::Cpu, precision, &|_| ()).unwrap();
        let hyperparameters =
            Hyperparameters::parse(&std::fs::read(world().join("memit.json")).unwrap()).unwrap();
        let contexts = Contexts::parse(&std::fs::read(reference(10).join("contexts.json")).unwrap()).unwrap();
        Plan::new(&model, &hyperparameters, &contexts, &facts(1))
            .unwrap()
            .estimate()
            .unwrap()
            .memory
            .host_size_bytes()
    };
    // Eight blocks of 128 by 512, the embedding and the head of 2048 words, two bytes less for each weight.
    let weights = 8 * (4 * 128 * 128 + 2 * 128 * 512) + 2 * 2048 * 128;
    let [wide, narrow] = [Precision::F32, Precision::Bf16].map(memory_size_bytes);
    assert_eq!(wide - narrow, 2 * weights);
}

/// Entries of `[rows, columns]` row-major, from a function of row and column.
fn entries(rows: usize, columns: usize, at: impl Fn(usize, usize) -> f64) -> Vec<f64> {
    (0..rows).flat_map(|row| (0..columns).map(|column| at(row, column)).collect::<Vec<_>>()).collect()
}

fn agrees_with_the_reference(count: usize) {
    let model = world_model();
    let edit = edit(&model, count);
    let arrays = npz(&reference(count).join("reference.npz"));
    let width = model.network.config().width;
    let values = entries(count, width, |fact, feature| f64::from(edit.values[fact].hidden[feature]));
    let mut worst = vec![("zs".to_owned(), relative_difference(&values, &arrays["zs"].values))];
    let contexts = Contexts::parse(&std::fs::read(reference(count).join("contexts.json")).unwrap()).unwrap();
    for (index, update) in edit.layers.iter().enumerate() {
        let (layer, tensor) = (update.layer, &update.tensor);
        let of = |name: &str, matrix: &faer::Mat<f64>| {
            let found = entries(matrix.nrows(), matrix.ncols(), |row, column| matrix[(row, column)]);
            (name.to_owned(), relative_difference(&found, &arrays[name].values))
        };
        let keys = keys_after(&model, &contexts, &facts(count), &edit.layers[..index], layer).unwrap();
        worst.push(of(&format!("ks_{layer}"), &keys));
        let Delta::ByFacts { adjusted_keys, residuals } = &update.delta else { panic!("a whole update") };
        worst.push(of(&format!("adjk_{tensor}"), adjusted_keys));
        worst.push(of(&format!("resid_{tensor}"), residuals));
        let (adjusted, residuals) = (&arrays[&format!("adjk_{tensor}")], &arrays[&format!("resid_{tensor}")]);
        let inner = adjusted.shape[0];
        let expected = entries(width, inner, |row, column| {
            (0..count).map(|k| residuals.values[row * count + k] * adjusted.values[column * count + k]).sum()
        });
        worst.push((format!("update {layer}"), relative_difference(&update.product(), &expected)));
    }
    for (name, difference) in worst {
        println!("{count} facts: {name} {difference:.1e}");
        assert!(difference < TOLERANCE, "{name} differs by {difference:e}");
    }
    scores_as_the_reference(&model, &edit, count);
}

/// The edit as a patch holds it by default, integers rounded to f16, against the reference's f32 weights.
fn scores_as_the_reference(model: &Model, edit: &Edit, count: usize) {
    let compression = Compression { bits: BITS_DEFAULT, limit: RankLimit::Full };
    let edits = edit.layers.iter().map(|layer| {
        let term = compress(&layer.factors(), &compression).unwrap();
        (layer.tensor.as_str(), vec![term])
    });
    let network = model.with_terms(edits).unwrap();
    let records = FactsFile::parse(&std::fs::read(world().join("records.json")).unwrap()).unwrap().records;
    let extent = Extent { generation: false, ngram_entropy_records: 0, seed: 0 };
    let scores = evaluate(model, &network, &records[..count], extent, &|_| ()).unwrap().scores;
    let recorded = std::fs::read(reference(count).join("scores.json")).unwrap();
    let recorded: serde_json::Value = serde_json::from_slice(&recorded).unwrap();
    let found = scores.score.unwrap();
    let expected = recorded["after"]["score"].as_f64().unwrap();
    println!("{count} facts: Score {found:.2}, the reference's {expected:.2}");
    assert!((found - expected).abs() < 0.5, "Score {found}, the reference's is {expected}");
    let before = evaluate(model, &model.network, &records[..count], extent, &|_| ()).unwrap().scores;
    assert_eq!(before.shares.neighborhood, recorded["before"]["neighborhood"].as_f64());
    assert_eq!(before.shares.efficacy, recorded["before"]["efficacy"].as_f64());
}

#[test]
fn progress_comes_to_what_was_foretold_with_the_texts_written_for_their_entropy() {
    let model = world_model();
    let records = FactsFile::parse(&std::fs::read(world().join("records.json")).unwrap()).unwrap().records;
    let extent = Extent { generation: true, ngram_entropy_records: 1, seed: 0 };
    let told = AtomicU64::new(0);
    let progress = |texts| {
        told.fetch_add(texts, Ordering::Relaxed);
    };
    evaluate(&model, &model.network, &records[..2], extent, &progress).unwrap();
    assert_eq!(told.into_inner(), texts(&records[..2], extent));
}

#[test]
fn ten_facts_are_edited_as_the_reference_edits_them() {
    agrees_with_the_reference(10);
}

#[test]
fn a_hundred_facts_are_edited_as_the_reference_edits_them() {
    agrees_with_the_reference(100);
}

#[test]
fn second_moments_of_the_corpus_are_those_of_the_reference() {
    let model = world_model();
    let base = model.checkpoint.weights_id().unwrap();
    let mut corpus = std::io::BufReader::new(std::fs::File::open(world().join("corpus.txt")).unwrap());
    let ours = collect_part(&model, base, &[0, 1, 2], &mut corpus, Amount::All, None, &|_| ()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let recorded = recorded_statistics(&model, folder.path());
    for (layer, sum) in &ours.layers {
        let expected = recorded.layer(*layer).unwrap();
        assert_eq!(sum.count, expected.count, "tokens of layer {layer}");
        let widen = |values: &[f32]| values.iter().map(|value| f64::from(*value)).collect::<Vec<_>>();
        let difference = relative_difference(&widen(&sum.sum), &widen(&expected.sum));
        println!("layer {layer}: {difference:.1e}");
        assert!(difference < TOLERANCE, "layer {layer} differs by {difference:e}");
    }
}

/// Batching and dropping what the moved hidden state cannot reach changes only the order of sums.
#[test]
fn values_in_batches_are_those_of_the_plain_path() {
    use mpatch::edit::value::{optimise, optimise_plainly};
    let model = world_model();
    let hyperparameters =
        Hyperparameters::parse(&std::fs::read(reference(10).join("hparams.json")).unwrap()).unwrap();
    let contexts = Contexts::parse(&std::fs::read(reference(10).join("contexts.json")).unwrap()).unwrap();
    let facts = facts(3);
    let together = optimise(&model, &hyperparameters, &contexts, &facts).unwrap();
    for (fact, value) in facts.iter().zip(&together) {
        let alone = optimise_plainly(&model, &hyperparameters, &contexts, fact).unwrap();
        assert_eq!(value.steps, alone.steps, "{}", fact.subject);
        let widen = |values: &[f32]| values.iter().map(|value| f64::from(*value)).collect::<Vec<_>>();
        let difference = relative_difference(&widen(&value.hidden), &widen(&alone.hidden));
        assert!(difference < 1e-5, "{}: {difference:e}", fact.subject);
    }
}

/// Hyperparameters of few steps, altered.
fn quick(alter: impl FnOnce(&mut Hyperparameters)) -> Hyperparameters {
    let mut quick =
        Hyperparameters::parse(&std::fs::read(reference(10).join("hparams.json")).unwrap()).unwrap();
    quick.v_num_grad_steps = 4;
    alter(&mut quick);
    quick
}

#[test]
fn every_hyperparameter_of_the_loss_has_a_part_in_the_values() {
    use mpatch::edit::value::{Value, optimise};
    let model = world_model();
    let contexts = Contexts::new(vec![vec!["{}".to_owned()]]).unwrap();
    let value = |alter: fn(&mut Hyperparameters)| -> Value {
        optimise(&model, &quick(alter), &contexts, &facts(1)).unwrap().remove(0)
    };
    let plain = value(|_| ());
    let loss_layer = value(|quick| quick.v_loss_layer = 5);
    for (name, other) in [
        ("v_lr", value(|quick| quick.v_lr = 0.1)),
        ("v_weight_decay", value(|quick| quick.v_weight_decay = 50.0)),
        ("kl_factor", value(|quick| quick.kl_factor = 20.0)),
        ("clamp_norm_factor", value(|quick| quick.clamp_norm_factor = 0.05)),
        ("v_loss_layer", loss_layer),
    ] {
        assert_ne!(other.hidden, plain.hidden, "{name} is not heeded");
        // The loss has its other terms beside the target's.
        assert!(f64::from(other.probability) > f64::from(-other.loss).exp(), "{name}: {other:?}");
    }
    // Nothing below the layer of the values feels them, and at its end a prompt is its subject's.
    let at_the_end = FactPrompt { prompt: "The name is {}".to_owned(), ..facts(1).remove(0) };
    let at = |layer: usize| {
        let hyperparameters = quick(|quick| quick.v_loss_layer = layer);
        optimise(&model, &hyperparameters, &contexts, std::slice::from_ref(&at_the_end)).unwrap()
    };
    assert_eq!(at(0), at(quick(|_| ()).value_layer()));
}

/// The embedded model with the first number of a token's vector no number.
fn model_without(token: u32, folder: &Path) -> Model {
    for name in ["config.json", "tokenizer.json"] {
        std::fs::copy(world().join(name), folder.join(name)).unwrap();
    }
    let mut file = std::fs::read(world().join("model.safetensors")).unwrap();
    let (size, rest) = file.split_first_chunk::<8>().unwrap();
    let weights = u64::from_le_bytes(*size) as usize;
    let header: serde_json::Value = serde_json::from_slice(&rest[..weights]).unwrap();
    let begin = header["transformer.wte.weight"]["data_offsets"][0].as_u64().unwrap() as usize;
    let place = 8 + weights + begin + token as usize * 128 * 2;
    file[place..place + 2].copy_from_slice(&0x7e00_u16.to_le_bytes());
    std::fs::write(folder.join("model.safetensors"), file).unwrap();
    Model::open(folder, &Device::Cpu, &|_| ()).unwrap()
}

#[test]
fn what_the_model_cannot_say_is_told_of_its_own_fact_and_question() {
    use mpatch::edit::EditError;
    use mpatch::edit::value::optimise;
    use mpatch::evaluate::{Question, outcomes};
    let (whole, folder) = (world_model(), tempfile::tempdir().unwrap());
    let broken = whole.tokenizer.encode(" harp").unwrap();
    let model = model_without(broken[0], folder.path());
    let fact = |subject: &str| FactPrompt {
        prompt: "{} performs on the".to_owned(),
        subject: subject.to_owned(),
        target: " flute".to_owned(),
    };
    let contexts = Contexts::new(vec![vec!["{}".to_owned()]]).unwrap();
    // The longest runs last among those that run together.
    let facts = [fact("Pavel Prestellman of all people"), fact("A harp"), fact("Ann")];
    let found = optimise(&model, &quick(|_| ()), &contexts, &facts);
    assert!(matches!(found, Err(EditError::Fact { position: 2, .. })), "{found:?}");
    let asked = |wrong: &str| {
        let [prompt, right] = ["Pavel Prestellman performs on the", "flute"].map(str::to_owned);
        let question = Question { prompt, right, wrong: Some(wrong.to_owned()) };
        outcomes(&model, &model.network, &[question], &|_| ()).map(|found| found[0].success.is_some())
    };
    assert!(asked("piano").unwrap());
    let found = asked("harp and").unwrap_err().to_string();
    assert!(
        found.starts_with("after `Pavel Prestellman performs on the` the model's output is not a number"),
        "{found}"
    );
}

#[test]
fn more_facts_than_a_layer_is_wide_are_solved_for_together_as_the_formula_says() {
    use mpatch::edit::statistics::{LayerSum, Statistics};
    use mpatch::edit::value::optimise;
    let folder = tempfile::tempdir().unwrap();
    let model = random_model(folder.path());
    let (inner, count, weight) = (model.network.config().inner, 90, 3.0);
    let moment: Vec<f32> =
        (0..inner * inner).map(|at| if at / inner == at % inner { 2.0 } else { 0.01 }).collect();
    let recorded = recorded_moments(&model, &world().join("reference/moments"));
    let sum = LayerSum { sum: moment.clone(), count: 1 };
    let statistics = Statistics { layers: [(0, sum)].into(), inner, ..recorded };
    let path = folder.path().join("statistics.safetensors");
    statistics.write(&path).unwrap();
    let hyperparameters = |steps| {
        quick(|quick| {
            (quick.layers, quick.v_loss_layer) = (vec![0], 3);
            (quick.v_num_grad_steps, quick.mom2_update_weight) = (steps, weight);
        })
    };
    let contexts = Contexts::new(vec![vec!["{}".to_owned()], vec!["So {}".to_owned()]]).unwrap();
    // Facts come in blocks of a quarter of the width, and no two are alike.
    let facts = facts(count);
    let statistics = StatisticsFile::open(&path).unwrap();
    let edit = memit(&model, &hyperparameters(2), &contexts, &facts, &statistics, &|_| ()).unwrap();
    let clean = optimise(&model, &hyperparameters(1), &contexts, &facts).unwrap();
    let keys = keys_after(&model, &contexts, &facts, &[], 0).unwrap();
    // update * (lambda * C + K K^T) = R K^T
    let update = edit.layers[0].product();
    let width = model.network.config().width;
    let normal = entries(inner, inner, |row, column| {
        let keys: f64 = (0..count).map(|fact| keys[(fact, row)] * keys[(fact, column)]).sum();
        weight * f64::from(moment[row * inner + column]) + keys
    });
    let found = entries(width, inner, |row, column| {
        (0..inner).map(|at| update[row * inner + at] * normal[at * inner + column]).sum()
    });
    let expected = entries(width, inner, |row, column| {
        let residual = |fact: usize| f64::from(edit.values[fact].hidden[row] - clean[fact].hidden[row]);
        (0..count).map(|fact| residual(fact) * keys[(fact, column)]).sum()
    });
    let difference = relative_difference(&found, &expected);
    assert!(difference < 1e-4, "{difference:e}");
}

#[test]
fn a_fact_fits_the_context_with_its_target_to_the_last_token() {
    let model = world_model();
    let contexts = Contexts::new(vec![vec!["{}".to_owned()]]).unwrap();
    let checked = |marks: usize| {
        let prompt = format!("{{}}{}", "!".repeat(marks));
        let fact = FactPrompt { prompt, subject: "Ann".to_owned(), target: " tall tall".to_owned() };
        Plan::new(&model, &quick(|_| ()), &contexts, &[fact]).map(drop).map_err(|error| with_causes(&error))
    };
    let tokens = |text: &str| model.tokenizer.encode(text).unwrap().len();
    let all = |marks: usize| tokens(&format!("Ann{}", "!".repeat(marks))) + tokens(" tall tall");
    let most = (1..).take_while(|&marks| all(marks) <= 256).last().unwrap();
    assert_eq!(checked(most), Ok(()));
    let found = checked(most + 1).unwrap_err();
    assert!(found.contains("tokens with its target, the model's context only 256"), "{found}");
}

#[test]
fn the_memory_foretold_holds_the_activations_and_what_is_solved_with() {
    use mpatch::edit::estimate::solve_size_bytes;
    let model = world_model();
    let config = model.network.config();
    let contexts = Contexts::new(vec![vec!["{}".to_owned()]]).unwrap();
    let estimate = Plan::new(&model, &quick(|_| ()), &contexts, &facts(3)).unwrap().estimate().unwrap();
    let weights = 4 * (8 * (4 * 128 * 128 + 2 * 128 * 512) + 2 * 2048 * 128);
    let foretold = estimate.memory.host_size_bytes();
    // One more matrix for each layer done.
    let edited = 3 * 4 * 128 * 512;
    assert_eq!(foretold, weights + edited + solve_size_bytes(config, 3, 3, 0), "{estimate:?}");
    // Of three rows to each of three facts; of what stands before the subject, keys and values in five blocks, twice.
    let behind = |words: usize| {
        let contexts = ["{}".to_owned(), format!("{}{{}}", "so ".repeat(words))];
        let contexts = Contexts::new(vec![contexts.into()]).unwrap();
        let estimate = Plan::new(&model, &quick(|_| ()), &contexts, &facts(3)).unwrap().estimate();
        estimate.unwrap().memory.host_size_bytes()
    };
    assert!(behind(91) - behind(46) >= 3 * 3 * 4 * 45 * 5 * 128 * 4);
    // The factor and the keys thrice in f64, and facts by facts twice.
    assert_eq!(solve_size_bytes(config, 0, 512, 0), (8 + 24 + 16) * 512 * 512);
}

/// A patch's integers of an edit, and how they were made.
struct Stored {
    all: usize,
    terms: Vec<Term>,
}

impl Stored {
    fn of(edit: &Edit, compression: &Compression) -> Self {
        let term = |layer: &LayerUpdate| compress(&layer.factors(), compression).unwrap();
        Self { all: edit.values.len(), terms: edit.layers.iter().map(term).collect() }
    }

    /// Its layers against the keys of all facts but the last `hidden`.
    fn spans(&self, bench: &SpanBench, facts: &[FactPrompt], hidden: usize) -> Vec<KeySpan> {
        let declared = &facts[..self.all - hidden];
        let SpanBench { model, hyperparameters, contexts, statistics, .. } = bench;
        let kept = Kept::default();
        let plan = Plan::new(model, hyperparameters, contexts, declared).unwrap();
        let mut spans = KeySpans::new(plan, statistics, kept);
        let measure = |(layer, term): (&usize, &Term)| {
            let update = Update::new(vec![term.clone()]).unwrap();
            spans.measure(*layer, &update.delta_rows(0..update.rows()).unwrap()).unwrap()
        };
        hyperparameters.layers.iter().zip(&self.terms).map(measure).collect()
    }
}

/// What key spans are measured with.
struct SpanBench {
    model: Model,
    hyperparameters: Hyperparameters,
    contexts: Contexts,
    statistics: StatisticsFile,
    _folder: tempfile::TempDir,
}

impl SpanBench {
    fn new() -> Self {
        let (model, folder) = (world_model(), tempfile::tempdir().unwrap());
        let file = |name: &str| std::fs::read(reference(10).join(name)).unwrap();
        Self {
            statistics: recorded_statistics(&model, folder.path()),
            contexts: Contexts::parse(&file("contexts.json")).unwrap(),
            hyperparameters: Hyperparameters::parse(&file("hparams.json")).unwrap(),
            model,
            _folder: folder,
        }
    }

    fn edit(&self, facts: &[FactPrompt]) -> Edit {
        memit(&self.model, &self.hyperparameters, &self.contexts, facts, &self.statistics, &|_| ()).unwrap()
    }
}

#[test]
fn an_update_for_a_fact_that_is_not_named_stands_out_of_the_span_of_the_others() {
    let bench = SpanBench::new();
    let facts = facts(6);
    let edit = bench.edit(&facts);
    for bits in [4, 6, 8] {
        let stored = Stored::of(&edit, &Compression { bits, limit: RankLimit::Full });
        for span in stored.spans(&bench, &facts, 0) {
            assert!(span.strongest < 0.2 && span.outside < 0.1 && span.gap < 2.0, "{bits} bits: {span:?}");
            assert_eq!((span.facts, span.directions, span.inner), (6, 6, 512));
        }
        for hidden in [1, 3, 5] {
            let spans = stored.spans(&bench, &facts, hidden);
            assert!(spans.iter().any(|span| span.strongest > 0.6), "{bits} bits, {hidden}: {spans:?}");
            // Rounding is in many directions, one fact in one.
            assert_eq!(hidden == 1, spans.iter().any(|span| span.gap > 5.0), "{bits} bits: {spans:?}");
        }
    }
}

/// How far updates lie outside the span of their facts' keys: those of patches that name all of their facts, and of
/// patches that hide some. The bounds of rung V3 follow from it.
///
/// `cargo test --test memit -- --ignored --nocapture the_key_spans_of_the_docs`
#[test]
#[ignore = "prints the table of docs/memit.md, in ten minutes"]
fn the_key_spans_of_the_docs_are_measured() {
    let bench = SpanBench::new();
    println!(
        "| facts | edits | stored in | outside | strongest | gap | 1 hidden | gap | 5 hidden | all but 1 |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for (all, edits) in [(2, 20), (6, 10), (11, 6), (31, 3), (101, 2), (201, 1)] {
        let every = facts(all * edits);
        let edited: Vec<(Edit, &[FactPrompt])> =
            every.chunks(all).map(|facts| (bench.edit(facts), facts)).collect();
        let ways = [
            (3, RankLimit::Full),
            (4, RankLimit::Full),
            (6, RankLimit::Full),
            (8, RankLimit::Full),
            (6, RankLimit::Tolerance(0.1)),
        ];
        for (bits, limit) in ways {
            let stored: Vec<_> = edited
                .iter()
                .map(|(edit, facts)| (Stored::of(edit, &Compression { bits, limit }), *facts))
                .collect();
            let measured = |hidden: usize| -> Vec<Vec<KeySpan>> {
                stored.iter().map(|(stored, facts)| stored.spans(&bench, facts, hidden)).collect()
            };
            let strongest = |hidden: usize| match hidden < all {
                true => range(&measured(hidden), |span| span.strongest),
                false => "-".to_owned(),
            };
            let (honest, one) = (measured(0), measured(1));
            let cells = [
                range(&honest, |span| span.outside),
                range(&honest, |span| span.strongest),
                range(&honest, |span| span.gap),
                range(&one, |span| span.strongest),
                range(&one, |span| span.gap),
                strongest(5),
                strongest(all - 1),
            ];
            let cut = if limit == RankLimit::Full { "" } else { ", cut by 10 %" };
            println!("| {all} | {} | {bits} bits{cut} | {} |", edited.len(), cells.join(" | "));
        }
    }
}

/// The least and the largest figure of some patches, each patch's that of the layer that stands out most.
fn range(patches: &[Vec<KeySpan>], of: fn(&KeySpan) -> f64) -> String {
    let worst = |spans: &Vec<KeySpan>| spans.iter().map(of).fold(0.0, f64::max);
    let figures: Vec<f64> = patches.iter().map(worst).collect();
    let least = figures.iter().copied().fold(f64::INFINITY, f64::min);
    let largest = figures.iter().copied().fold(0.0, f64::max);
    match patches.len() {
        1 => format!("{largest:.3}"),
        _ => format!("{least:.3} to {largest:.3}"),
    }
}
