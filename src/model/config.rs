//! The shape of a GPT-J model, from its `config.json`.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{ModelError, plain};

/// What `config.json` says of a `GPTJForCausalLM`.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Hugging Face's class name.
    pub architecture: String,
    /// Number of words that the embedding and the head know.
    pub vocabulary: usize,
    /// Longest context in tokens.
    pub positions: usize,
    /// Width of the hidden state.
    pub width: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Attention heads per block.
    pub heads: usize,
    /// Leading features of each head that carry the position.
    pub rotary: usize,
    /// Width of the MLP between its two matrices.
    pub inner: usize,
    /// Added to the variance in every layer norm.
    pub layer_norm_epsilon: f64,
}

/// The class of a model that `config.json` names first, whatever model it is of.
pub fn architecture_of(config: &[u8]) -> Option<String> {
    let config: Value = serde_json::from_slice(config).ok()?;
    Some(config.get("architectures")?.get(0)?.as_str()?.to_owned())
}

/// What says which model it is.
#[derive(Deserialize)]
struct Kind {
    model_type: Option<String>,
    #[serde(default)]
    architectures: Option<Vec<String>>,
}

/// The fields as Hugging Face writes them, with the class's defaults, and the names that all classes share.
#[derive(Deserialize)]
struct Raw {
    vocab_size: usize,
    #[serde(default = "Raw::positions", alias = "max_position_embeddings")]
    n_positions: usize,
    #[serde(alias = "hidden_size")]
    n_embd: usize,
    #[serde(alias = "num_hidden_layers")]
    n_layer: usize,
    #[serde(alias = "num_attention_heads")]
    n_head: usize,
    #[serde(default = "Raw::rotary")]
    rotary_dim: usize,
    n_inner: Option<usize>,
    #[serde(default = "Raw::activation")]
    activation_function: String,
    #[serde(default = "Raw::epsilon")]
    layer_norm_epsilon: f64,
    #[serde(default)]
    tie_word_embeddings: bool,
}

impl Raw {
    fn positions() -> usize {
        2048
    }
    fn rotary() -> usize {
        64
    }
    fn activation() -> String {
        "gelu_new".to_owned()
    }
    fn epsilon() -> f64 {
        1e-5
    }

    /// Every field with a value of its kind.
    fn sound() -> Value {
        json!({
            "vocab_size": 1, "n_positions": 1, "n_embd": 1, "n_layer": 1, "n_head": 1, "rotary_dim": 1, "n_inner": 1,
            "activation_function": "", "layer_norm_epsilon": 0.5, "tie_word_embeddings": false,
        })
    }
}

/// Fields of which null is no way to ask for the default: the class takes the rotary null for the whole head, and
/// cannot be made with the others.
const NEVER_NULL: [&str; 4] = ["n_positions", "rotary_dim", "activation_function", "layer_norm_epsilon"];

/// Keeps a hostile config from asking for more than any GPT-J has.
const DIMENSION_MAX: usize = 1 << 24;
/// And for more positions: each takes its sines and cosines, which no weight in the file pays for.
const POSITIONS_MAX: usize = 1 << 17;

impl Config {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// [`ModelError::Config`] or [`ModelError::Unsupported`] names the field, what was found and what is expected.
    pub fn parse(bytes: &[u8]) -> Result<Self, ModelError> {
        let invalid = |what: String| ModelError::Config { what };
        let kind: Kind =
            plain::read(bytes, || json!({"model_type": "", "architectures": [""]})).map_err(invalid)?;
        // Before the fields: another architecture has others.
        let architecture = kind.architecture().map_err(|what| ModelError::Unsupported { what })?;
        let raw: Raw = plain::read(bytes, Raw::sound).map_err(invalid)?;
        refuse_nulls(bytes).map_err(invalid)?;
        raw.check().map_err(invalid)?;
        raw.check_variant().map_err(|what| ModelError::Unsupported { what })?;
        Ok(Self {
            architecture,
            vocabulary: raw.vocab_size,
            positions: raw.n_positions,
            width: raw.n_embd,
            layers: raw.n_layer,
            heads: raw.n_head,
            rotary: raw.rotary_dim,
            inner: raw.n_inner.unwrap_or(4 * raw.n_embd),
            layer_norm_epsilon: raw.layer_norm_epsilon,
        })
    }

    /// Features per attention head.
    pub fn head_width(&self) -> usize {
        self.width / self.heads
    }
}

fn refuse_nulls(bytes: &[u8]) -> Result<(), String> {
    let fields: Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    match NEVER_NULL.into_iter().find(|field| fields.get(field).is_some_and(Value::is_null)) {
        Some(field) => Err(format!(
            "`{field}` is null: give its value, or leave it out for the default of GPT-J's class"
        )),
        None => Ok(()),
    }
}

impl Kind {
    /// The class name; anything that is not GPT-J is refused by name.
    fn architecture(&self) -> Result<String, String> {
        let classes = self.architectures.clone().unwrap_or_default();
        let found = classes.first().cloned().or_else(|| self.model_type.clone()).unwrap_or_default();
        let is_gptj = match &self.model_type {
            Some(model_type) => model_type == "gptj",
            None => found.starts_with("GPTJ"),
        };
        if is_gptj {
            return Ok("GPTJForCausalLM".to_owned());
        }
        let field = match &self.model_type {
            Some(model_type) if found.starts_with("GPTJ") => format!("the model_type is `{model_type}`"),
            _ => format!("the architecture is `{found}`"),
        };
        Err(format!("{field}; mpatch edits GPT-J (`GPTJForCausalLM`, model_type `gptj`)"))
    }
}

impl Raw {
    fn check(&self) -> Result<(), String> {
        let sizes = [
            ("vocab_size", self.vocab_size, DIMENSION_MAX),
            ("n_positions", self.n_positions, POSITIONS_MAX),
            ("n_embd", self.n_embd, DIMENSION_MAX),
            ("n_layer", self.n_layer, DIMENSION_MAX),
            ("n_head", self.n_head, DIMENSION_MAX),
            ("n_inner", self.n_inner.unwrap_or(1), DIMENSION_MAX),
        ];
        for (field, found, limit) in sizes {
            if !(1..=limit).contains(&found) {
                return Err(format!("`{field}` is {found}, expected 1 to {limit}"));
            }
        }
        if !self.n_embd.is_multiple_of(self.n_head) {
            return Err(format!("`n_embd` {} is not a multiple of `n_head` {}", self.n_embd, self.n_head));
        }
        let head_width = self.n_embd / self.n_head;
        let rotary = self.rotary_dim;
        if rotary < 2 || !rotary.is_multiple_of(2) || rotary > head_width {
            return Err(format!("`rotary_dim` is {rotary}, expected an even number from 2 to {head_width}"));
        }
        Ok(())
    }

    /// What the class allows and mpatch does not compute.
    fn check_variant(&self) -> Result<(), String> {
        if !["gelu_new", "gelu_pytorch_tanh", "gelu_fast"].contains(&self.activation_function.as_str()) {
            return Err(format!(
                "`activation_function` is `{}`, expected `gelu_new`",
                self.activation_function
            ));
        }
        if self.tie_word_embeddings {
            return Err("`tie_word_embeddings` is true; GPT-J has a head of its own".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        Config::parse(text.as_bytes()).expect_err("must be refused").to_string()
    }

    #[test]
    fn gpt_j_6b_is_read_with_the_defaults_of_its_class() {
        let text = r#"{"model_type": "gptj", "vocab_size": 50400, "n_positions": 2048, "n_embd": 4096,
            "n_layer": 28, "n_head": 16, "rotary_dim": 64, "n_inner": null}"#;
        let config = Config::parse(text.as_bytes()).expect("GPT-J's own config");
        assert_eq!((config.inner, config.head_width(), config.rotary), (16384, 256, 64));
    }

    #[test]
    fn positions_beyond_any_gpt_j_are_refused_before_a_table_of_them_is_made() {
        let text = |positions: usize| {
            format!(
                r#"{{"model_type": "gptj", "vocab_size": 10, "n_embd": 64, "n_layer": 1, "n_head": 1,
                    "n_positions": {positions}}}"#
            )
        };
        assert!(Config::parse(text(POSITIONS_MAX).as_bytes()).is_ok());
        let found = refusal(&text(POSITIONS_MAX + 1));
        assert!(found.contains("`n_positions` is 131073, expected 1 to 131072"), "{found}");
    }

    #[test]
    fn another_architecture_is_refused_by_name() {
        let text = r#"{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096}"#;
        assert!(refusal(text).contains("`LlamaForCausalLM`"));
    }

    #[test]
    fn sizes_that_do_not_fit_are_named() {
        let text = r#"{"model_type": "gptj", "vocab_size": 10, "n_embd": 10, "n_layer": 1, "n_head": 3}"#;
        assert!(refusal(text).contains("`n_embd` 10 is not a multiple of `n_head` 3"));
        let text = r#"{"model_type": "gptj", "vocab_size": 10, "n_embd": 12, "n_layer": 1, "n_head": 3, "rotary_dim": 5}"#;
        assert!(refusal(text).contains("`rotary_dim` is 5, expected an even number from 2 to 4"));
        assert!(refusal(r#"{"model_type": "gptj"}"#).contains("missing field `vocab_size`"));
        let text = r#"{"model_type": "GPTJ", "architectures": ["GPTJForCausalLM"]}"#;
        assert!(refusal(text).contains("the model_type is `GPTJ`; "), "{}", refusal(text));
    }

    #[test]
    fn a_field_of_another_kind_is_named() {
        for (field, expected) in [
            (r#""n_head": "4""#, "`n_head` is the text \"4\", expected a whole number, 0 or more"),
            (r#""n_head": 1, "n_embd": -12"#, "`n_embd` is -12, expected a whole number, 0 or more"),
            (
                r#""n_head": 1, "tie_word_embeddings": 1"#,
                "`tie_word_embeddings` is 1, expected true or false",
            ),
            (
                r#""n_head": 1, "activation_function": ["relu"]"#,
                "`activation_function` is [\"relu\"], expected a text",
            ),
        ] {
            let text = format!(r#"{{"model_type": "gptj", "vocab_size": 10, "n_layer": 1, {field}}}"#);
            assert_eq!(refusal(&text), format!("config.json: {expected}"));
        }
        assert!(refusal("n_head: 4").contains("expected JSON: "));
    }

    #[test]
    fn what_a_config_leaves_out_is_as_in_hugging_face_s_class() {
        let text = r#"{"model_type": "gptj", "vocab_size": 10, "n_embd": 128, "n_layer": 1, "n_head": 1}"#;
        let config = Config::parse(text.as_bytes()).expect("the defaults fit");
        let found = (config.positions, config.rotary, config.inner, config.layer_norm_epsilon);
        assert_eq!(found, (2048, 64, 512, 1e-5));
    }

    #[test]
    fn the_names_that_all_classes_share_are_read() {
        let text = r#"{"model_type": "gptj", "vocab_size": 10, "hidden_size": 128, "num_hidden_layers": 3,
            "num_attention_heads": 2, "max_position_embeddings": 77}"#;
        let config = Config::parse(text.as_bytes()).expect("a config");
        assert_eq!((config.width, config.layers, config.heads, config.positions), (128, 3, 2, 77));
    }

    #[test]
    fn null_is_no_default_where_the_class_takes_it_for_something_else() {
        for field in NEVER_NULL {
            let text = format!(
                r#"{{"model_type": "gptj", "vocab_size": 10, "n_embd": 64, "n_layer": 1, "n_head": 1, "{field}": null}}"#
            );
            assert!(refusal(&text).contains(&format!("`{field}` is null")), "{}", refusal(&text));
        }
    }

    #[test]
    fn what_is_not_computed_is_refused() {
        let with = |field: &str| {
            let text = format!(
                r#"{{"model_type": "gptj", "vocab_size": 10, "n_embd": 128, "n_layer": 1, "n_head": 1, {field}}}"#
            );
            Config::parse(text.as_bytes())
        };
        assert!(with(r#""activation_function": "gelu_fast""#).is_ok());
        let found = with(r#""activation_function": "gelu""#).expect_err("another GELU").to_string();
        assert!(found.ends_with("`activation_function` is `gelu`, expected `gelu_new`"), "{found}");
        let found = with(r#""tie_word_embeddings": true"#).expect_err("no head").to_string();
        assert!(found.ends_with("GPT-J has a head of its own"), "{found}");
    }
}
