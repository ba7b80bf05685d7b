//! MEMIT's hyperparameters, in the reference's JSON layout.

use std::ops::{Bound, RangeBounds};

use serde::{Deserialize, Serialize};

use super::EditError;
use crate::facts::excerpt;
use crate::facts::repeated::{RepeatedKey, repeated_key};
use crate::model::{Config, Network, plain};

/// Hyperparameters of MEMIT, by the names of the reference's `hparams/MEMIT/*.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hyperparameters {
    /// Edited layers, ascending; values are optimised at the output of the last.
    pub layers: Vec<usize>,
    /// Largest size of a value's change, relative to the hidden state it changes.
    pub clamp_norm_factor: f64,
    /// Read by the reference and not used: `all`.
    #[serde(default = "all")]
    pub layer_selection: String,
    /// Which token carries the fact: `subject_last`.
    pub fact_token: FactToken,
    /// Gradient steps per value; the loss of the last is computed and not followed.
    pub v_num_grad_steps: usize,
    /// Adam's learning rate for values.
    pub v_lr: f64,
    /// Layer whose output the head reads for the loss.
    pub v_loss_layer: usize,
    /// Weight of `norm(delta) / norm(hidden state)^2` in the loss.
    pub v_weight_decay: f64,
    /// Weight of the divergence of the subject's own continuation in the loss.
    pub kl_factor: f64,
    /// Read by the reference and not used.
    #[serde(default = "yes")]
    pub mom2_adjustment: bool,
    /// `lambda`: weight of the second moment of the keys against the new keys.
    pub mom2_update_weight: f64,
    /// Name pattern of the edited matrix.
    pub rewrite_module_tmp: String,
    /// Name pattern of a block.
    pub layer_module_tmp: String,
    /// Name pattern of a block's MLP.
    pub mlp_module_tmp: String,
    /// Name pattern of a block's attention.
    pub attn_module_tmp: String,
    /// Name of the final norm.
    pub ln_f_module: String,
    /// Name of the head.
    pub lm_head_module: String,
    /// Name of the corpus of the second moments.
    #[serde(default)]
    pub mom2_dataset: String,
    /// Documents of that corpus.
    #[serde(default)]
    pub mom2_n_samples: u64,
    /// Type that second moments are stored in: `float32`.
    #[serde(default = "float32")]
    pub mom2_dtype: String,
}

/// The token of a prompt that carries the fact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FactToken {
    /// The subject's last token.
    SubjectLast,
}

/// A million times what GPT-J takes and more: nothing of the new facts is left long before.
const UPDATE_WEIGHT_MAX: f64 = 1e12;

/// What files of ROME and of EasyEdit have besides: where they look for things, how they run, and how ROME samples its
/// contexts and takes its keys. An edit by MEMIT does not depend on it.
const OF_OTHERS: [&str; 14] = [
    "alg_name",
    "batch_size",
    "context_template_length_params",
    "device",
    "enable_prompt_keys",
    "enable_random_prefix_keys",
    "fp16",
    "max_length",
    "model_class",
    "model_name",
    "model_parallel",
    "original_implementation",
    "stats_dir",
    "tokenizer_class",
];

fn all() -> String {
    "all".to_owned()
}
fn yes() -> bool {
    true
}
fn float32() -> String {
    "float32".to_owned()
}

/// Where a set of hyperparameters came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The values published for GPT-J-6B.
    GptJ6B,
    /// Scaled from those by the model's depth; never tuned.
    Guess,
}

impl Hyperparameters {
    /// Reads the reference's JSON.
    ///
    /// # Errors
    /// [`EditError::Hyperparameters`] with the field.
    pub fn parse(bytes: &[u8]) -> Result<Self, EditError> {
        if let Some(RepeatedKey { key, line, column }) = repeated_key(bytes) {
            let what = format!("{} stands twice, again at line {line}, column {column}", excerpt(&key));
            return Err(EditError::Hyperparameters { what });
        }
        let sound = serde_json::to_value(Self::gpt_j_6b()).unwrap_or_default();
        let own = sound.as_object().into_iter().flat_map(|fields| fields.keys().map(String::as_str));
        let known: Vec<&str> = own.chain(OF_OTHERS).collect();
        let read = plain::refuse_unknown(bytes, &known).and_then(|()| plain::read(bytes, || sound.clone()));
        read.map_err(|what| EditError::Hyperparameters { what })
    }

    /// The reference's values for GPT-J-6B.
    pub fn gpt_j_6b() -> Self {
        Self {
            layers: (3..=8).collect(),
            clamp_norm_factor: 0.75,
            layer_selection: all(),
            fact_token: FactToken::SubjectLast,
            v_num_grad_steps: 25,
            v_lr: 0.5,
            v_loss_layer: 27,
            v_weight_decay: 0.5,
            kl_factor: 0.0625,
            mom2_adjustment: true,
            mom2_update_weight: 15000.0,
            rewrite_module_tmp: "transformer.h.{}.mlp.fc_out".to_owned(),
            layer_module_tmp: "transformer.h.{}".to_owned(),
            mlp_module_tmp: "transformer.h.{}.mlp".to_owned(),
            attn_module_tmp: "transformer.h.{}.attn".to_owned(),
            ln_f_module: "transformer.ln_f".to_owned(),
            lm_head_module: "lm_head".to_owned(),
            mom2_dataset: "wikipedia".to_owned(),
            mom2_n_samples: 100_000,
            mom2_dtype: float32(),
        }
    }

    /// What to use when no file says: GPT-J-6B's own values for a model of its shape, else a guess from the depth.
    pub fn for_model(config: &Config) -> (Self, Source) {
        let published = Self::gpt_j_6b();
        if (config.layers, config.width) == (28, 4096) {
            return (published, Source::GptJ6B);
        }
        let scaled = |layer: usize| (layer * config.layers / 28).min(config.layers - 1);
        let (first, last) = (scaled(3), scaled(8));
        let guess = Self { layers: (first..=last).collect(), v_loss_layer: config.layers - 1, ..published };
        (guess, Source::Guess)
    }

    /// The layer whose output carries the values: the last edited one.
    pub fn value_layer(&self) -> usize {
        self.layers.last().copied().unwrap_or_default()
    }

    /// Checks the values against the model.
    ///
    /// # Errors
    /// [`EditError::Layers`] and [`EditError::Hyperparameters`] name the field, what was found and what is possible.
    pub fn check(&self, network: &Network) -> Result<(), EditError> {
        let layers = network.config().layers;
        let refuse = |what: String| Err(EditError::Hyperparameters { what });
        if self.layers.is_empty() || !self.layers.is_sorted_by(|one, next| one < next) {
            let what = format!("is {:?}, expected ascending layers, at least one", self.layers);
            return Err(EditError::Layers { what });
        }
        if self.value_layer() >= layers {
            let what = format!("names {}, but the model has {layers}, counted from 0", self.value_layer());
            return Err(EditError::Layers { what });
        }
        if self.v_loss_layer >= layers {
            return refuse(format!(
                "`v_loss_layer` is {}, but the model has {layers} layers",
                self.v_loss_layer
            ));
        }
        if !self.rewrite_module_tmp.ends_with("h.{}.mlp.fc_out") {
            let found = &self.rewrite_module_tmp;
            return refuse(format!(
                "`rewrite_module_tmp` is `{found}`, expected `transformer.h.{{}}.mlp.fc_out`"
            ));
        }
        let (above_0, from_0) = (Bound::Excluded(0.0), Bound::Included(0.0));
        for (field, found, least, most, expected) in [
            ("clamp_norm_factor", self.clamp_norm_factor, above_0, f64::MAX, "a positive number"),
            ("v_lr", self.v_lr, above_0, f64::MAX, "a positive number"),
            (
                "mom2_update_weight",
                self.mom2_update_weight,
                above_0,
                UPDATE_WEIGHT_MAX,
                "a positive number, at most 1e12",
            ),
            ("v_weight_decay", self.v_weight_decay, from_0, f64::MAX, "0 or more"),
            ("kl_factor", self.kl_factor, from_0, f64::MAX, "0 or more"),
        ] {
            if !(least, Bound::Included(most)).contains(&found) {
                return refuse(format!("`{field}` is {found:?}, expected {expected}"));
            }
        }
        if self.v_num_grad_steps == 0 {
            return refuse("`v_num_grad_steps` is 0, expected at least 1".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_s_file_is_read_and_written_back() {
        let text = serde_json::to_string(&Hyperparameters::gpt_j_6b()).expect("plain data");
        assert_eq!(
            Hyperparameters::parse(text.as_bytes()).expect("its own text"),
            Hyperparameters::gpt_j_6b()
        );
        assert!(text.contains(r#""fact_token":"subject_last""#));
    }

    #[test]
    fn what_is_not_used_may_be_null_and_a_value_of_another_kind_is_named() {
        let with = |field: &str, value: serde_json::Value| {
            let mut object = serde_json::to_value(Hyperparameters::gpt_j_6b()).expect("plain data");
            object[field] = value;
            Hyperparameters::parse(object.to_string().as_bytes())
        };
        for field in ["mom2_n_samples", "layer_selection", "mom2_dtype"] {
            assert!(with(field, serde_json::Value::Null).is_ok(), "{field}");
        }
        let error = with("v_lr", "0.5".into()).expect_err("a text");
        assert_eq!(error.to_string(), "hyperparameters: `v_lr` is the text \"0.5\", expected a number");
        let text = serde_json::to_string(&Hyperparameters::gpt_j_6b()).expect("plain data");
        let text = text.replacen('{', "{\"v_lr\": 0.1,\n", 1);
        let error = Hyperparameters::parse(text.as_bytes()).expect_err("two rates").to_string();
        assert!(
            error.starts_with("hyperparameters: `v_lr` stands twice, again at line 2, column "),
            "{error}"
        );
        let error = with("layers", serde_json::json!([3, -1])).expect_err("a layer below the first");
        assert_eq!(
            error.to_string(),
            "hyperparameters: `layers` is [3,-1], expected a list of whole numbers"
        );
    }

    #[test]
    fn a_field_that_nobody_knows_is_refused_with_the_nearest_and_those_of_others_are_passed_by() {
        let with = |field: &str| {
            let mut object = serde_json::to_value(Hyperparameters::gpt_j_6b()).expect("plain data");
            object[field] = 1.into();
            Hyperparameters::parse(object.to_string().as_bytes())
        };
        for field in OF_OTHERS {
            assert_eq!(with(field).expect("of another program"), Hyperparameters::gpt_j_6b(), "{field}");
        }
        for (field, expected) in [
            ("mom2_adjustmnt", "there is no field `mom2_adjustmnt`; the nearest name is `mom2_adjustment`"),
            (
                "v_num_grad_step",
                "there is no field `v_num_grad_step`; the nearest name is `v_num_grad_steps`",
            ),
            ("L2", "there is no field `L2`"),
        ] {
            let error = with(field).expect_err("nobody's");
            assert_eq!(error.to_string(), format!("hyperparameters: {expected}"));
        }
    }

    #[test]
    fn an_unknown_fact_token_is_refused() {
        let text = serde_json::to_string(&Hyperparameters::gpt_j_6b()).expect("plain data");
        let text = text.replace("subject_last", "first");
        let error = Hyperparameters::parse(text.as_bytes()).expect_err("no such token");
        assert!(error.to_string().contains("subject_last"), "{error}");
    }

    #[test]
    fn what_was_published_for_gpt_j_is_taken_for_a_model_of_its_shape_only() {
        let config = |width: usize| {
            let text = format!(
                r#"{{"model_type": "gptj", "vocab_size": 10, "n_embd": {width}, "n_layer": 28, "n_head": 1}}"#
            );
            Config::parse(text.as_bytes()).expect("a config")
        };
        assert_eq!(Hyperparameters::for_model(&config(4096)).1, Source::GptJ6B);
        let (guessed, source) = Hyperparameters::for_model(&config(1024));
        assert_eq!((guessed.layers, source), ((3..=8).collect(), Source::Guess));
    }
}
