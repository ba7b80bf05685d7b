//! `base.json`: the model that a store is about, with the digest of each of its tensors.

use serde::{Deserialize, Serialize};

use crate::digest::{FileDigest, TensorDigest, WeightsId};
use crate::tensor::matrix_shape;

/// Names the layout of `base.json` and its version.
const SCHEMA: &str = "mpatch.base/1";

/// The model that all of a store's patches are for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {
    schema: String,
    /// Its class, as its config names it; absent for weights without a config.
    pub architecture: Option<String>,
    /// Digest of its `config.json`.
    pub config: Option<FileDigest>,
    /// Digest of its `tokenizer.json`.
    pub tokenizer: Option<FileDigest>,
    /// The id of its weights; follows from the tensors.
    pub weights: WeightsId,
    /// All its tensors, in bytewise order of their names.
    pub tensors: Vec<BaseTensor>,
}

/// One tensor of the base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseTensor {
    /// Its name.
    pub name: String,
    /// Its element type, as safetensors writes it.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<u64>,
    /// Digest of its bytes.
    pub digest: TensorDigest,
}

impl BaseTensor {
    /// Its rows and columns as a patch counts them: a tensor of one dimension is one row.
    pub fn matrix_shape(&self) -> Option<[u64; 2]> {
        matrix_shape(&self.shape)
    }
}

impl Base {
    /// A base of these tensors, in any order.
    pub fn new(
        architecture: Option<String>,
        config: Option<FileDigest>,
        tokenizer: Option<FileDigest>,
        mut tensors: Vec<BaseTensor>,
    ) -> Self {
        tensors.sort_by(|one, other| one.name.cmp(&other.name));
        let weights = weights_id(&tensors);
        Self { schema: SCHEMA.to_owned(), architecture, config, tokenizer, weights, tensors }
    }

    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<&BaseTensor> {
        let found = self.tensors.binary_search_by(|tensor| tensor.name.as_str().cmp(name));
        found.ok().map(|index| &self.tensors[index])
    }

    /// The bytes of `base.json`: a line for each tensor, so that people and `git diff` can read it.
    #[doc(hidden)] // for fuzzers
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        let head = Base { tensors: Vec::new(), ..self.clone() };
        let head = serde_json::to_string_pretty(&head)?;
        let lines = self.tensors.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
        let lines: Vec<String> = lines.into_iter().map(|line| format!("\n    {line}")).collect();
        let end = head.rfind("[]").unwrap_or(head.len());
        Ok(format!("{}[{}\n  ]\n}}\n", &head[..end], lines.join(",")))
    }

    /// Reads `base.json`; says what is wrong with it.
    #[doc(hidden)] // for fuzzers
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let base: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if base.schema != SCHEMA {
            return Err(format!("it has the layout `{}`, this program reads `{SCHEMA}`", base.schema));
        }
        if !base.tensors.is_sorted_by(|one, next| one.name < next.name) {
            return Err("its tensors are not in order, each once".to_owned());
        }
        if !cfg!(fuzzing) && weights_id(&base.tensors) != base.weights {
            return Err("its weights id is not that of its tensors".to_owned());
        }
        Ok(base)
    }
}

fn weights_id(tensors: &[BaseTensor]) -> WeightsId {
    WeightsId::of_tensors(
        tensors.iter().map(|tensor| {
            (tensor.name.as_str(), tensor.dtype.as_str(), tensor.shape.as_slice(), tensor.digest)
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_survives_its_own_text() {
        let tensor = |name: &str| BaseTensor {
            name: name.to_owned(),
            dtype: "F16".to_owned(),
            shape: vec![4],
            digest: TensorDigest::of(name.as_bytes()),
        };
        for tensors in [vec![], vec![tensor("b"), tensor("a")]] {
            let base = Base::new(Some("GPTJForCausalLM".to_owned()), None, None, tensors);
            let text = base.to_json().unwrap();
            assert_eq!(Base::parse(text.as_bytes()), Ok(base));
        }
    }

    #[test]
    fn a_base_whose_id_is_not_its_own_is_refused() {
        let base = Base::new(None, None, None, vec![]);
        let text = base.to_json().unwrap().replace(&base.weights.to_string(), &"0".repeat(64));
        assert!(Base::parse(text.as_bytes()).unwrap_err().contains("weights id"));
        let later = base.to_json().unwrap().replace("mpatch.base/1", "mpatch.base/2");
        assert!(Base::parse(later.as_bytes()).unwrap_err().contains("mpatch.base/2"));
    }
}
