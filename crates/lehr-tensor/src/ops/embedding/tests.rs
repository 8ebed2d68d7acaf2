use super::reference;
use crate::testing::{Case, Pair, golden_cases};
use crate::{Error, Philox, Tensor};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = golden_cases("embedding", |params, _| pair(params.ids(0)));
    for (n_vocab, d, ids) in [
        (3, 4, &[0][..]),
        (1, 1, &[1]),
        (5, 7, &[2, 3]),
        (4, 0, &[3]),
        (50, 65, &[3, 40]),
        (300, 130, &[2, 200]),
        (20, 64, &[2, 1, 3]),
        (7, 3, &[]),
    ] {
        let shapes = [vec![n_vocab, d]];
        let name = format!("{n_vocab} x {d}, ids {ids:?}");
        cases.push(Case::random(&name, &shapes, pair(random_ids(n_vocab, ids))));
    }
    cases
}

/// Ids below `limit` in the given shape; some repeat.
pub(crate) fn random_ids(limit: usize, shape: &[usize]) -> Tensor {
    let rng = Philox::new(41, 0);
    let n: usize = shape.iter().product();
    let ids: Vec<_> = (0..n as u64).map(|i| (rng.block(i)[0] as usize % limit) as i32).collect();
    Tensor::from_ids(&ids, shape).unwrap()
}

fn pair(ids: Tensor) -> Pair {
    let same = ids.clone();
    Pair::one(
        move |x| x[0].embedding(&ids),
        move |x| reference::gather(&x[0], same.ids(), &same.shape()),
    )
}

#[test]
fn an_id_outside_of_the_table_is_an_error_with_its_position() {
    let table = Tensor::zeros([3, 2]).unwrap();
    for bad in [3, -1, i32::MAX] {
        let ids = Tensor::from_ids(&[0, 2, bad, 1], [2, 2]).unwrap();
        match table.embedding(&ids) {
            Err(Error::Index { op: "embedding", index, position: 2, limit: 3 }) => {
                assert_eq!(index, i64::from(bad));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_table_shared_by_two_lookups_gets_the_sum_of_their_gradients() {
    let table = Tensor::zeros([3, 70]).unwrap().trainable();
    let a = table.embedding(&Tensor::from_ids(&[1, 1], [2]).unwrap()).unwrap();
    let b = table.embedding(&Tensor::from_ids(&[2, 1], [2]).unwrap()).unwrap();
    a.add(&b).unwrap().sum().unwrap().backward().unwrap();
    let grad = table.grad().unwrap().to_vec();
    for (row, want) in grad.chunks(70).zip([0.0, 3.0, 1.0]) {
        assert!(row.iter().all(|g| *g == want));
    }
}

#[test]
fn wrong_types_and_ranks_are_errors() {
    let table = Tensor::zeros([3, 2]).unwrap();
    assert!(matches!(table.embedding(&table), Err(Error::DType { .. })));
    let ids = Tensor::from_ids(&[0], [1]).unwrap();
    assert!(matches!(Tensor::zeros([3]).unwrap().embedding(&ids), Err(Error::Rank { .. })));
    let ids = Tensor::from_ids(&[0], [1; 6]).unwrap();
    assert!(matches!(table.embedding(&ids), Err(Error::Rank { .. })));
}
