use super::{Gate, reference};
use crate::testing::{Case, Pair, golden_cases};
use crate::{Error, Tensor};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = golden_cases("add_gated", |params, n_inputs| {
        pair(params.number("factor").unwrap() as f32, n_inputs == 4)
    });
    for has_scale in [false, true] {
        for (shape, gate) in [
            (&[0, 3][..], &[0][..]),
            (&[1], &[1]),
            (&[3, 5], &[3]),
            (&[2, 7, 3, 13], &[2, 7, 3]),
            (&[600, 65], &[600]),
        ] {
            let mut shapes = vec![shape.to_vec(), shape.to_vec(), gate.to_vec()];
            shapes.extend(has_scale.then(|| vec![1]));
            let name = format!("add gated {shape:?}, scale {has_scale}");
            cases.push(Case::random(&name, &shapes, pair(3.0, has_scale)));
        }
    }
    let same = Pair::one(
        |x| x[0].add_gated(&x[0], Gate { logits: &x[1], scale: None, factor: 1.0 }),
        |x| reference::add_gated(&x[0], &x[0], &x[1], 1.0, 1.0),
    );
    cases.push(Case::random("gated rows added to themselves", &[vec![5, 7], vec![5]], same));
    cases
}

fn pair(factor: f32, has_scale: bool) -> Pair {
    Pair::one(
        move |x| {
            let scale = has_scale.then(|| &x[3]);
            x[0].add_gated(&x[1], Gate { logits: &x[2], scale, factor })
        },
        move |x| {
            let scale = if has_scale { x[3].data[0] } else { 1.0 };
            reference::add_gated(&x[0], &x[1], &x[2], scale, f64::from(factor))
        },
    )
}

#[test]
fn a_gate_for_another_number_of_rows_is_refused() {
    let x = Tensor::zeros([2, 3]).unwrap();
    for n in [1, 3, 6] {
        let logits = Tensor::zeros([n]).unwrap();
        let gate = Gate { logits: &logits, scale: None, factor: 1.0 };
        assert!(matches!(x.add_gated(&x, gate), Err(Error::Shape { .. })));
    }
}
