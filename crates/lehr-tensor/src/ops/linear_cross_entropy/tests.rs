use super::cpu::{Factors, Head, HeadGrads, WeightGrad};
use super::labels::Labelled;
use super::{CrossEntropy, reference};
use crate::quant::{Activations, MatrixFormat, QMatrix, Scaling, WeightFormat};
use crate::testing::{Array, Case, Pair, golden_cases};
use crate::{Error, Philox, Tensor, no_grad};

const PLAIN: CrossEntropy = CrossEntropy { normalizer: 1.0, z_loss: 0.0, softcap: None };

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = golden_cases("linear_cross_entropy", |params, _| {
        let normalizer = params.number("normalizer").unwrap() as f32;
        let z_loss = params.number("z_loss").unwrap() as f32;
        loss(params.ids(0), CrossEntropy { normalizer, z_loss, softcap: None })
    });
    cases.extend(golden_cases("token_logprobs", |params, _| logprobs(params.ids(0), None)));
    // Rows, width, vocabulary, every how many rows one has no label.
    for (rows, d, v, gap) in [
        (&[0][..], 3, 5, 2),
        (&[1], 1, 1, 9),
        (&[3], 5, 7, 1),
        (&[2, 3], 17, 33, 9),
        (&[4, 9], 7, 130, 3),
        (&[70], 20, 301, 9),
        (&[5], 3, 5000, 2),
    ] {
        let n: usize = rows.iter().product();
        let targets = targets(n, v, gap).with_shape(rows.into());
        let shapes = [[rows, &[d]].concat(), vec![v, d], vec![v]];
        let normalizer = n.max(1) as f32 - 0.5;
        for (name, shapes) in [("", &shapes[..2]), (" with bias", &shapes)] {
            let name = format!("{rows:?} of {d} to {v}{name}");
            for (z_loss, softcap) in
                [(0.0, None), (0.01, None), (0.0, Some(2.0)), (0.003, Some(5.0))]
            {
                let options = CrossEntropy { normalizer, z_loss, softcap };
                let name = format!("{name}, {options:?}");
                cases.push(Case::random(&name, shapes, loss(targets.clone(), options)));
            }
            for cap in [None, Some(3.0)] {
                let name = format!("token_logprobs {name}, cap {cap:?}");
                cases.push(Case::random(&name, shapes, logprobs(targets.clone(), cap)));
            }
        }
        for (z_loss, cap) in [(0.0, None), (0.02, Some(3.0))] {
            let name = format!("cross_entropy_rows {rows:?} of {v}, {z_loss}, cap {cap:?}");
            let shape = [rows, &[v]].concat();
            cases.push(Case::random(&name, &[shape], row_losses(targets.clone(), z_loss, cap)));
        }
    }
    cases.extend(stored_cases());
    cases
}

/// Heads that are used as they are stored. Multiplied as f32, so that gradients can be checked.
fn stored_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (rows, d, v, format) in [
        (&[0][..], 32, 5, WeightFormat::Q8_0.into()),
        (&[1], 32, 1, WeightFormat::BF16.into()),
        (&[2, 3], 64, 33, MatrixFormat::Nf4),
        (&[4, 9], 34, 130, MatrixFormat::Int8(Scaling::Row)),
        (&[70], 64, 301, MatrixFormat::Int4(Scaling::Group(32))),
        (&[5], 256, 1200, WeightFormat::Q4_K.into()),
    ] {
        let n: usize = rows.iter().product();
        let targets = targets(n, v, 3).with_shape(rows.into());
        let mut values = vec![0.0; v * d];
        Philox::new(21, d as u64).fill_normal(&mut values, 0.3);
        let head = QMatrix::from_f32(&values, v, d, format).unwrap();
        let head = head.with_activations(Activations::F32);
        let shapes = [[rows, &[d]].concat(), vec![v]];
        let options = CrossEntropy { normalizer: n as f32 + 0.5, z_loss: 0.01, softcap: Some(6.0) };
        for (name, shapes) in [("", &shapes[..1]), (" with bias", &shapes)] {
            let name = format!("{rows:?} of {d} to {v} in {format}{name}");
            let loss = stored_loss(head.clone(), targets.clone(), options);
            cases.push(Case::random(&name, shapes, loss));
            let name = format!("token_logprobs {name}");
            let logprobs = stored_logprobs(head.clone(), targets.clone(), options.softcap);
            cases.push(Case::random(&name, shapes, logprobs));
        }
    }
    cases
}

/// The head that `reference` takes: the numbers of a stored matrix, and the bias.
fn numbers(head: &QMatrix, rest: &[Array]) -> Vec<Array> {
    let data = head.to_f32().unwrap().data().iter().map(|x| f64::from(*x)).collect();
    let weight = Array { shape: vec![head.rows(), head.cols()], data };
    std::iter::once(weight).chain(rest.iter().cloned()).collect()
}

fn stored_loss(head: QMatrix, targets: Tensor, options: CrossEntropy) -> Pair {
    let (ids, same) = (targets.ids().to_vec(), head.clone());
    Pair::one(
        move |x| x[0].linear_cross_entropy(&head, x.get(1), &targets, options),
        move |x| reference::loss(&x[0], &numbers(&same, &x[1..]), &ids, options),
    )
}

fn stored_logprobs(head: QMatrix, targets: Tensor, cap: Option<f32>) -> Pair {
    let (ids, same) = (targets.ids().to_vec(), head.clone());
    Pair::one(
        move |x| x[0].token_logprobs(&head, x.get(1), &targets, cap),
        move |x| reference::logprobs(&x[0], &numbers(&same, &x[1..]), &ids, cap),
    )
}

fn row_losses(targets: Tensor, z_loss: f32, cap: Option<f32>) -> Pair {
    let ids = targets.ids().to_vec();
    Pair::one(
        move |x| x[0].cross_entropy_rows(&targets, z_loss, cap),
        move |x| reference::row_losses(&x[0], &ids, z_loss, cap),
    )
}

/// Random labels; every `gap`-th row has none.
fn targets(n: usize, v: usize, gap: usize) -> Tensor {
    let random = Philox::new(3, 0);
    let id = |i: usize| {
        if i % gap == gap - 1 { -100 } else { (random.block(i as u64)[0] as usize % v) as i32 }
    };
    Tensor::from_ids(&(0..n).map(id).collect::<Vec<_>>(), [n]).unwrap()
}

fn loss(targets: Tensor, options: CrossEntropy) -> Pair {
    let ids = targets.ids().to_vec();
    Pair::one(
        move |x| x[0].linear_cross_entropy(&x[1], x.get(2), &targets, options),
        move |x| reference::loss(&x[0], &x[1..], &ids, options),
    )
}

fn logprobs(targets: Tensor, cap: Option<f32>) -> Pair {
    let ids = targets.ids().to_vec();
    Pair::one(
        move |x| x[0].token_logprobs(&x[1], x.get(2), &targets, cap),
        move |x| reference::logprobs(&x[0], &x[1..], &ids, cap),
    )
}

fn random(shape: [usize; 2], stream: u64) -> Tensor {
    let mut x = Tensor::zeros(shape).unwrap();
    Philox::new(5, stream).fill_normal(x.data_mut(), 1.0);
    x
}

fn near(a: &[f32], b: &[f32]) {
    let scale = b.iter().fold(1e-3f32, |m, v| m.max(v.abs()));
    for (a, b) in a.iter().zip(b) {
        assert!((a - b).abs() <= 1e-6 * scale, "{a} against {b}");
    }
}

#[test]
fn many_chunks_give_what_one_chunk_gives() {
    let (x, w, targets) = (random([50, 12], 0), random([37, 12], 1), targets(50, 37, 99));
    let bias = random([37, 1], 2);
    let rows = Labelled::find("test", &targets, 37).unwrap();
    let factors: Vec<f32> = (0..50).map(|i| i as f32 / 50.0 - 0.3).collect();
    let pass = |chunk_rows: usize| {
        let mut head = Head::new(&x, (&w).into(), Some(&bias), &rows, 0.01, Some(4.0));
        head.chunk_rows = chunk_rows;
        let (mut losses, mut dx, mut dw) = (vec![0.0; 50], vec![0.0; 600], vec![1.0; 37 * 12]);
        let (mut db, mut forward) = (vec![7.0; 37], losses.clone());
        head.forward(&mut forward).unwrap();
        let weight = Some(WeightGrad { dw: &mut dw, accumulate: true });
        let grads = HeadGrads { dx: Some(&mut dx), weight, db: Some(&mut db) };
        head.forward_backward(&mut losses, &Factors::PerRow(&factors), grads).unwrap();
        assert_eq!(losses, forward);
        [losses, dx, dw, db]
    };
    let one = pass(50);
    for chunk_rows in [1, 7, 25, 49] {
        pass(chunk_rows).iter().zip(&one).for_each(|(many, one)| near(many, one));
    }
}

#[test]
fn only_what_is_wanted_gets_a_gradient_and_the_loss_is_the_same() {
    let inputs = [random([20, 12], 0), random([37, 12], 1), random([37, 1], 2)];
    let [x, w, bias] = &inputs;
    let (bias, targets) = (bias.reshape([37]).unwrap(), targets(20, 37, 4));
    let run = |[x, w, bias]: [&Tensor; 3]| {
        let loss = x.linear_cross_entropy(w, Some(bias), &targets, PLAIN).unwrap();
        let value = loss.item().unwrap();
        loss.backward().unwrap();
        (value, [x, w, bias].map(|t| t.grad().map(|g| g.to_vec())))
    };
    let (value, [dx, dw, db]) = run([&x.trainable(), &w.trainable(), &bias.trainable()]);
    assert!(dx.is_some() && dw.is_some() && db.is_some());
    assert_eq!(run([&x.trainable(), w, &bias]), (value, [dx, None, None]));
    assert_eq!(run([x, &w.trainable(), &bias]), (value, [None, dw, None]));
    assert_eq!(run([x, w, &bias.trainable()]), (value, [None, None, db]));
    let silent = no_grad(|| x.trainable().linear_cross_entropy(w, Some(&bias), &targets, PLAIN));
    let silent = silent.unwrap();
    assert_eq!((silent.item().unwrap(), silent.wants_grad()), (value, false));
}

#[test]
fn no_label_at_all_gives_zero_and_zero_gradients() {
    let (x, w) = (random([4, 3], 0).trainable(), random([5, 3], 1).trainable());
    let bias = Tensor::full([5], 1.0).unwrap().trainable();
    let targets = Tensor::from_ids(&[-100; 4], [4]).unwrap();
    let options = CrossEntropy { normalizer: 0.0, ..PLAIN };
    let loss = x.linear_cross_entropy(&w, Some(&bias), &targets, options).unwrap();
    assert_eq!(loss.item().unwrap(), 0.0);
    loss.backward().unwrap();
    for (leaf, n) in [(&x, 12), (&w, 15), (&bias, 5)] {
        assert_eq!(leaf.grad().unwrap().to_vec(), vec![0.0; n]);
    }
}

#[test]
fn a_certain_prediction_has_a_small_loss_with_all_its_digits() {
    let x = Tensor::from_slice(&[1.0], [1, 1]).unwrap();
    let w = Tensor::from_slice(&[100.0, 90.0], [2, 1]).unwrap();
    let targets = Tensor::from_ids(&[0], [1]).unwrap();
    let loss = x.linear_cross_entropy(&w, None, &targets, PLAIN).unwrap().item().unwrap();
    let want = (-10.0f64).exp().ln_1p();
    // The sum 1 + e^−10 is rounded to f32: half a unit in the last place of 1.
    assert!((f64::from(loss) - want).abs() < 1e-7, "{loss} against {want}");
}

#[test]
fn bad_arguments_are_refused() {
    let (x, w) = (random([2, 3], 0), random([5, 3], 1));
    let ids = |ids: &[i32]| Tensor::from_ids(ids, [ids.len()]).unwrap();
    for bad in [5, -1, -99] {
        let error = x.linear_cross_entropy(&w, None, &ids(&[0, bad]), PLAIN).unwrap_err();
        let Error::Index { index, position, limit, .. } = error else { panic!("{error}") };
        assert_eq!((index, position, limit), (bad.into(), 1, 5));
        assert!(x.token_logprobs(&w, None, &ids(&[bad, 0]), None).is_err());
    }
    let good = ids(&[0, 4]);
    assert!(x.cross_entropy_rows(&ids(&[0, 3]), 0.0, None).is_err());
    assert!(x.cross_entropy_rows(&ids(&[0]), 0.0, None).is_err());
    assert!(x.cross_entropy_rows(&ids(&[0, 2]), 0.0, Some(-1.0)).is_err());
    let options = CrossEntropy { normalizer: 0.0, ..PLAIN };
    assert!(x.cross_entropy(&ids(&[0, 2]), options).is_err());
    assert_eq!(x.cross_entropy(&ids(&[-100, -100]), options).unwrap().item().unwrap(), 0.0);
    assert!(x.linear_cross_entropy(&w, None, &ids(&[0]), PLAIN).is_err());
    assert!(x.linear_cross_entropy(&random([5, 4], 1), None, &good, PLAIN).is_err());
    assert!(x.linear_cross_entropy(&w, None, &w, PLAIN).is_err());
    for bias in [random([4, 1], 2).reshape([4]).unwrap(), random([5, 1], 2), ids(&[0; 5])] {
        assert!(x.linear_cross_entropy(&w, Some(&bias), &good, PLAIN).is_err());
        assert!(x.token_logprobs(&w, Some(&bias), &good, None).is_err());
    }
    for options in [
        CrossEntropy { normalizer: 0.0, ..PLAIN },
        CrossEntropy { normalizer: f32::NAN, ..PLAIN },
        CrossEntropy { softcap: Some(0.0), ..PLAIN },
    ] {
        let error = x.linear_cross_entropy(&w, None, &good, options).unwrap_err();
        assert!(matches!(error, Error::Argument { .. }), "{error}");
    }
}

#[test]
fn a_second_backward_is_an_error() {
    let (x, w) = (random([2, 3], 0).trainable(), random([5, 3], 1));
    let targets = Tensor::from_ids(&[0, 1], [2]).unwrap();
    let loss = x.linear_cross_entropy(&w, None, &targets, PLAIN).unwrap();
    loss.clone().backward().unwrap();
    assert!(matches!(loss.backward(), Err(Error::Argument { name: "graph", .. })));
}
