use crate::ops::embedding::{reference, tests::random_ids};
use crate::testing::{Case, Pair, golden_cases};
use crate::{Error, Tensor};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = golden_cases("gather_rows", |params, _| pair(params.ids(0)));
    for (n, d, m) in [(3, 4, 0), (1, 1, 1), (5, 7, 9), (130, 65, 40), (64, 300, 100)] {
        let name = format!("{m} of {n} x {d}");
        cases.push(Case::random(&name, &[vec![n, d]], pair(random_ids(n, &[m]))));
    }
    cases
}

fn pair(ids: Tensor) -> Pair {
    let same = ids.clone();
    Pair::one(
        move |x| x[0].gather_rows(&ids),
        move |x| reference::gather(&x[0], same.ids(), &same.shape()),
    )
}

#[test]
fn rows_that_do_not_exist_are_errors() {
    let x = Tensor::zeros([2, 3]).unwrap();
    let ids = Tensor::from_ids(&[0, 2], [2]).unwrap();
    let wanted = Error::Index { op: "gather_rows", index: 2, position: 1, limit: 2 };
    assert_eq!(x.gather_rows(&ids).unwrap_err().to_string(), wanted.to_string());
    let square = Tensor::from_ids(&[0], [1, 1]).unwrap();
    assert!(matches!(x.gather_rows(&square), Err(Error::Rank { .. })));
}
