//! Cases that PyTorch computed, from `tests/golden/<op>.safetensors` (see `tools/golden`).

use safetensors::{SafeTensors, tensor::TensorView};

use super::{Case, Golden, Pair, Tolerance};
use crate::Tensor;

/// The parameters of a golden case and its integer inputs.
pub(crate) struct Params {
    values: serde_json::Value,
    ids: Vec<Tensor>,
}

impl Params {
    /// A number, if the case has one of that name.
    pub(crate) fn number(&self, name: &str) -> Option<f64> {
        self.values.get(name)?.as_f64()
    }

    /// A switch; absent means off.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.values.get(name).and_then(serde_json::Value::as_bool).unwrap_or(false)
    }

    /// A word, if the case has one of that name.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.values.get(name)?.as_str()
    }

    /// The integer input of that number.
    pub(crate) fn ids(&self, index: usize) -> Tensor {
        self.ids[index].clone()
    }

    /// How many integer inputs there are.
    pub(crate) fn n_ids(&self) -> usize {
        self.ids.len()
    }
}

/// All golden cases of `op`; `pair` builds the op and its reference from the parameters and the
/// number of float inputs.
pub(crate) fn golden_cases(op: &str, pair: impl Fn(&Params, usize) -> Pair) -> Vec<Case> {
    // At run time first: the program may have been carried to a machine with a GPU.
    let root = std::env::var("CARGO_MANIFEST_DIR");
    let root = root.as_deref().unwrap_or(env!("CARGO_MANIFEST_DIR"));
    let path = format!("{root}/tests/golden/{op}.safetensors");
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("reading {path}: {e}"));
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().clone().unwrap();
    let cases: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(&metadata["cases"]).unwrap();
    assert!(!cases.is_empty(), "{path} has no cases");
    cases
        .into_iter()
        .map(|(name, values)| {
            let list = |kind: &str| numbered(&file, &name, kind);
            let inputs: Vec<_> = list("in")
                .iter()
                .map(|t| Tensor::from_slice(&floats(t), t.shape()).unwrap())
                .collect();
            let ids = list("ids")
                .iter()
                .map(|t| Tensor::from_ids(&ints(t), t.shape()).unwrap())
                .collect();
            let all = |kind| list(kind).iter().map(floats).collect();
            let golden = Golden { outputs: all("out"), cotangents: all("cot"), grads: all("grad") };
            let pair = pair(&Params { values, ids }, inputs.len());
            Case {
                name: format!("golden {op} {name}"),
                inputs,
                pair,
                golden: Some(golden),
                tolerance: Tolerance::F32,
                smooth: true,
                each: None,
            }
        })
        .collect()
}

fn numbered<'a>(file: &SafeTensors<'a>, case: &str, kind: &str) -> Vec<TensorView<'a>> {
    (0..).map_while(|i| file.tensor(&format!("{case}.{kind}{i}")).ok()).collect()
}

fn floats(view: &TensorView<'_>) -> Vec<f32> {
    assert_eq!(view.dtype(), safetensors::Dtype::F32);
    view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn ints(view: &TensorView<'_>) -> Vec<i32> {
    assert_eq!(view.dtype(), safetensors::Dtype::I32);
    view.data().chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap())).collect()
}
