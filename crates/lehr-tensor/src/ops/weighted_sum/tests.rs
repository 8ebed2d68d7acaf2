use super::{Term, reference};
use crate::testing::{Case, Pair, golden_cases};
use crate::{Error, Tensor};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = golden_cases("weighted_sum", |params, n_inputs| {
        let n = params.number("terms").unwrap() as usize;
        let factors = (0..n).map(|i| params.number(&format!("factor{i}")).unwrap() as f32);
        // The last terms have no weight.
        let n_weights = n_inputs - n;
        pair(factors.enumerate().map(|(i, factor)| (i < n_weights, factor)).collect())
    });
    let terms: [&[(bool, f32)]; 5] = [
        &[(true, 1.0)],
        &[(false, 1.0), (true, -1.0)],
        &[(true, 1.0), (true, 0.5), (true, 1.0)],
        &[(true, 1.0), (false, 1.0), (false, -2.0), (true, 1.0)],
        &[(false, 0.25)],
    ];
    for terms in terms {
        for shape in [&[0, 3][..], &[1], &[3, 5], &[7, 11, 13], &[40_000]] {
            let n_weights = terms.iter().filter(|term| term.0).count();
            let mut shapes = vec![shape.to_vec(); terms.len()];
            shapes.extend(vec![vec![1]; n_weights]);
            let name = format!("weighted sum {terms:?} {shape:?}");
            cases.push(Case::random(&name, &shapes, pair(terms.to_vec())));
        }
    }
    let shared = Pair::one(
        |x| Tensor::weighted_sum(&[Term::new(&x[0]).times(&x[1]), Term::new(&x[0]).times(&x[1])]),
        |x| {
            let mut y = x[0].clone();
            y.data.iter_mut().for_each(|y| *y *= 2.0 * x[1].data[0]);
            y
        },
    );
    cases.push(Case::random("one tensor and one weight twice", &[vec![5, 7], vec![1]], shared));
    cases
}

/// Each term says whether it has a weight, and its factor.
fn pair(terms: Vec<(bool, f32)>) -> Pair {
    let wide: Vec<_> = terms.iter().map(|(has, factor)| (*has, f64::from(*factor))).collect();
    Pair::one(
        move |x| {
            let mut weights = x[terms.len()..].iter();
            let term = |(x, (has_weight, factor)): (_, &(bool, f32))| {
                let term = Term::new(x).scaled(*factor);
                if *has_weight { term.times(weights.next().unwrap()) } else { term }
            };
            let terms: Vec<Term<'_>> = x.iter().zip(&terms).map(term).collect();
            Tensor::weighted_sum(&terms)
        },
        move |x| reference::weighted_sum(x, &wide),
    )
}

#[test]
fn wrong_terms_are_refused() {
    let (x, other) = (Tensor::zeros([2]).unwrap(), Tensor::zeros([3]).unwrap());
    let sum = |terms: &[Term<'_>]| Tensor::weighted_sum(terms).unwrap_err();
    assert!(matches!(sum(&[]), Error::Argument { name: "terms", .. }));
    assert!(matches!(sum(&[Term::new(&x); 5]), Error::Argument { name: "terms", .. }));
    assert!(matches!(sum(&[Term::new(&x), Term::new(&other)]), Error::Shape { .. }));
    assert!(matches!(sum(&[Term::new(&x).times(&x)]), Error::Shape { .. }));
}
