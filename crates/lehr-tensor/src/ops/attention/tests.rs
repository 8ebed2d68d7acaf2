use super::reference::{self, Rules};
use super::{AttentionSize, Mask, OP};
use crate::testing::{Array, Case, Pair, are_products_in_bf16, golden_cases};
use crate::{Error, Philox, Tensor, no_grad};

/// Starts the size of a case: a batch of `tq` queries and `tk` keys per text.
fn tokens(batch: usize, tq: usize, tk: usize) -> AttentionSize {
    AttentionSize { batch, tq, tk, n_heads: 1, n_kv_heads: 1, width: 1 }
}

impl AttentionSize {
    fn heads(self, n_heads: usize, n_kv_heads: usize) -> Self {
        Self { n_heads, n_kv_heads, ..self }
    }

    fn width(self, width: usize) -> Self {
        Self { width, ..self }
    }
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = golden_cases(OP, |params, _| {
        let ids = (params.n_ids() > 0).then(|| params.ids(0).ids().to_vec());
        let rules = Rules {
            causal: params.flag("causal"),
            window: params.number("window").map(|w| w as usize),
            segments: ids.clone().filter(|_| params.flag("segments")),
            prefix: ids.filter(|_| params.flag("prefix")),
            n_keys: None,
        };
        pair(rules, params.number("scale").map(|s| s as f32))
    });
    // The file also has a case for a cap on the scores, which this op does not offer.
    cases.retain(|case| !case.name.contains("softcap"));
    for (name, size, rules) in shapes().into_iter().chain(masks()) {
        cases.push(random(name, size, rules));
    }
    for (size, rules) in [
        (tokens(2, 70, 70).heads(4, 2).width(5), causal()),
        (tokens(1, 9, 9).heads(3, 3).width(16), both()),
    ] {
        cases.push(packed_case(size, rules));
    }
    cases
}

fn causal() -> Rules {
    Rules { causal: true, ..Rules::default() }
}

fn both() -> Rules {
    Rules::default()
}

/// Odd extents under the plain masks.
fn shapes() -> Vec<(&'static str, AttentionSize, Rules)> {
    vec![
        ("no batch", tokens(0, 3, 3).heads(2, 2).width(4), causal()),
        ("no queries", tokens(1, 0, 3).heads(2, 2).width(4), causal()),
        ("no keys", tokens(1, 3, 0).heads(2, 2).width(4), both()),
        ("no width", tokens(1, 3, 3).heads(2, 2).width(0), causal()),
        ("one", tokens(1, 1, 1).heads(1, 1).width(1), causal()),
        ("width 1", tokens(2, 65, 65).heads(2, 2).width(1), causal()),
        ("width 5, one block and a bit", tokens(1, 67, 67).heads(4, 2).width(5), causal()),
        ("width 16", tokens(1, 128, 128).heads(1, 1).width(16), both()),
        ("width 40, many heads to one", tokens(1, 130, 130).heads(5, 1).width(40), causal()),
        ("width 64", tokens(1, 200, 200).heads(2, 2).width(64), causal()),
        ("width 80", tokens(2, 33, 47).heads(3, 3).width(80), both()),
        ("width 128", tokens(1, 129, 129).heads(2, 1).width(128), causal()),
        ("more queries than keys", tokens(1, 70, 9).heads(2, 1).width(8), both()),
        ("more queries than keys, causal", tokens(1, 70, 9).heads(2, 1).width(8), causal()),
        ("few queries at the end", tokens(2, 3, 190).heads(6, 2).width(16), causal()),
    ]
}

/// Every kind of mask, and their combinations.
fn masks() -> Vec<(&'static str, AttentionSize, Rules)> {
    let size = tokens(2, 150, 150).heads(4, 2).width(12);
    let few = AttentionSize { tq: 40, ..size };
    let starts = || Some(starts(2, 150));
    let prefix = || Some(vec![37, 140]);
    let window = |window, rules| Rules { window: Some(window), ..rules };
    let segments = |rules| Rules { segments: starts(), ..rules };
    let with_prefix = |rules| Rules { prefix: prefix(), ..rules };
    let slots = |n_keys, rules| Rules { n_keys: Some(n_keys), ..rules };
    vec![
        ("window 1", size, window(1, causal())),
        ("window 1, both", size, window(1, both())),
        ("window 20", size, window(20, causal())),
        ("window 70", size, window(70, causal())),
        ("window 20, both", size, window(20, both())),
        ("window beyond the keys", size, window(usize::MAX, both())),
        ("segments", size, segments(causal())),
        ("segments, both", size, segments(both())),
        ("segments, window", size, window(13, segments(causal()))),
        ("segments, window, both", size, window(13, segments(both()))),
        ("prefix", size, with_prefix(causal())),
        ("prefix, window", size, window(50, with_prefix(causal()))),
        ("prefix, segments", size, with_prefix(segments(causal()))),
        ("prefix, segments, window", size, window(9, with_prefix(segments(causal())))),
        ("free slots", few, slots(101, causal())),
        ("free slots, both", few, slots(101, both())),
        ("free slots, prefix", few, slots(101, with_prefix(causal()))),
        ("free slots, window, segments", few, slots(101, window(30, segments(causal())))),
        ("more queries than filled slots", size, slots(77, causal())),
        ("no filled slots", AttentionSize { tq: 5, ..size }, slots(0, both())),
    ]
}

/// Segments of uneven lengths; some are single tokens.
fn starts(batch: usize, tk: usize) -> Vec<i32> {
    let stream = Philox::new(5, 0);
    let mut starts = Vec::new();
    for b in 0..batch {
        let mut start = 0;
        for t in 0..tk {
            if stream.block((b * tk + t) as u64)[0] % 23 < if t > 70 && t < 80 { 23 } else { 1 } {
                start = t;
            }
            starts.push(start as i32);
        }
    }
    starts
}

fn mask_of(rules: &Rules, batch: usize, tk: usize) -> Mask {
    let mut mask = if rules.causal { Mask::causal() } else { Mask::bidirectional() };
    if let Some(window) = rules.window {
        mask = mask.with_window(window);
    }
    if let Some(starts) = &rules.segments {
        mask = mask.with_segments(Tensor::from_ids(starts, [batch, tk]).unwrap());
    }
    if let Some(prefix) = &rules.prefix {
        mask = mask.with_prefix(Tensor::from_ids(prefix, [batch]).unwrap());
    }
    if let Some(n_keys) = rules.n_keys {
        mask = mask.with_n_keys(n_keys);
    }
    mask.in_bf16(are_products_in_bf16())
}

fn default_scale(e: usize) -> f32 {
    1.0 / (e.max(1) as f32).sqrt()
}

fn pair(rules: Rules, scale: Option<f32>) -> Pair {
    let same = rules.clone();
    Pair::one(
        move |x| {
            let k = x[1].shape();
            let mask = mask_of(&rules, k[0], k[1]);
            x[0].attention(&x[1], &x[2], &mask, scale.unwrap_or(default_scale(k[3])))
        },
        move |x| {
            let scale = scale.unwrap_or(default_scale(x[0].last_dim()));
            reference::attention(&x[0], &x[1], &x[2], &same, f64::from(scale))
        },
    )
}

fn random(name: &str, size: AttentionSize, rules: Rules) -> Case {
    let AttentionSize { batch, tq, tk, n_heads, n_kv_heads, width } = size;
    let keys = vec![batch, tk, n_kv_heads, width];
    let shapes = [vec![batch, tq, n_heads, width], keys.clone(), keys];
    Case::random(&format!("attention: {name}"), &shapes, pair(rules, None))
}

fn packed_case(size: AttentionSize, rules: Rules) -> Case {
    let AttentionSize { batch: b, tq: t, n_heads: h, n_kv_heads: kv, width: e, .. } = size;
    let mask = mask_of(&rules, b, t);
    let n_all = h + 2 * kv;
    let scale = default_scale(e);
    let pair = Pair::one(
        move |x| x[0].attention_packed(h, kv, &mask, scale),
        move |x| {
            let part = |first, n| reference::heads(&x[0], n_all, first, n);
            let (q, k, v) = (part(0, h), part(h, kv), part(h + kv, kv));
            let y = reference::attention(&q, &k, &v, &rules, f64::from(scale));
            Array { shape: vec![b, t, h * e], data: y.data }
        },
    );
    Case::random(&format!("attention: packed T{t} E{e}"), &[vec![b, t, n_all * e]], pair)
}

fn normal(shape: &[usize], stream: u64) -> Tensor {
    let mut x = Tensor::zeros(shape).unwrap();
    Philox::new(3, stream).fill_normal(x.data_mut(), 1.0);
    x
}

/// q, k and v of one packed tensor.
fn unpack(qkv: &Tensor, h: usize, kv: usize, e: usize) -> [Tensor; 3] {
    let (b, t) = (qkv.shape()[0], qkv.shape()[1]);
    [(0, h), (h, kv), (h + kv, kv)].map(|(first, n)| {
        let rows = qkv.data().chunks_exact((h + 2 * kv) * e);
        let values: Vec<f32> = rows.flat_map(|r| r[first * e..][..n * e].to_vec()).collect();
        Tensor::from_slice(&values, [b, t, n, e]).unwrap()
    })
}

#[test]
fn packed_equals_separate_to_the_bit() {
    let (b, t, h, kv, e) = (2, 83, 6, 2, 20);
    let packed = normal(&[b, t, (h + 2 * kv) * e], 0).trainable();
    let parts = unpack(&packed, h, kv, e).map(|x| x.trainable());
    let mask = Mask::causal().with_window(60);
    let y = packed.attention_packed(h, kv, &mask, 0.2).unwrap();
    let z = parts[0].attention(&parts[1], &parts[2], &mask, 0.2).unwrap();
    assert_eq!(y.data(), z.data());
    let dy = normal(&[b, t, h * e], 1);
    y.backward_with(dy.clone()).unwrap();
    z.backward_with(dy.reshape([b, t, h, e]).unwrap()).unwrap();
    let grads = unpack(&packed.grad().unwrap(), h, kv, e);
    for (got, want) in grads.iter().zip(&parts) {
        assert_eq!(got.data(), want.grad().unwrap().data());
    }
}

#[test]
fn gradients_of_two_uses_add_up() {
    let (t, h, e) = (70, 2, 8);
    let x = normal(&[1, t, 3 * h * e], 0).trainable();
    let dy = normal(&[1, t, h * e], 1);
    let once = || x.attention_packed(h, h, &Mask::causal(), 0.3).unwrap();
    once().backward_with(dy.clone()).unwrap();
    let single = x.grad().unwrap().to_vec();
    once().backward_with(dy).unwrap();
    for (twice, single) in x.grad().unwrap().data().iter().zip(single) {
        assert!((twice - 2.0 * single).abs() <= 1e-6 * single.abs().max(0.1));
    }
}

#[test]
fn only_wanted_gradients_are_computed() {
    let all = [0, 1, 2].map(|i| normal(&[1, 66, 2, 8], i));
    let full = all.clone().map(|x| x.trainable());
    let run = |x: &[Tensor; 3]| {
        let y = x[0].attention(&x[1], &x[2], &Mask::causal(), 0.3).unwrap();
        y.backward_with(normal(&[1, 66, 2, 8], 9)).unwrap();
    };
    run(&full);
    for wanted in 0..3 {
        let mut some = all.clone();
        some[wanted] = some[wanted].trainable();
        run(&some);
        for (i, (x, want)) in some.iter().zip(&full).enumerate() {
            let got = x.grad().map(|g| g.to_vec());
            assert_eq!(got, (i == wanted).then(|| want.grad().unwrap().to_vec()), "{wanted} {i}");
        }
    }
}

#[test]
fn free_slots_may_hold_anything() {
    let (filled, slots) = (75, 140);
    let q = normal(&[1, 3, 4, 20], 0).trainable();
    let [k, v] = [1, 2].map(|i| {
        let mut x = normal(&[1, slots, 2, 20], i);
        x.data_mut()[filled * 40..].fill(f32::NAN);
        x.trainable()
    });
    let mask = Mask::causal().with_n_keys(filled);
    let y = q.attention(&k, &v, &mask, 0.3).unwrap();
    let decoded = no_grad(|| q.attention(&k, &v, &mask, 0.3).unwrap());
    assert!(y.data().iter().chain(decoded.data()).all(|x| x.is_finite()));
    y.backward_with(normal(&[1, 3, 4, 20], 3)).unwrap();
    for x in [k, v] {
        let grad = x.grad().unwrap();
        assert!(grad.data()[..filled * 40].iter().all(|g| g.is_finite()));
        assert!(grad.data()[filled * 40..].iter().all(|g| *g == 0.0));
    }
}

#[test]
fn decoding_gives_the_last_rows_of_the_whole() {
    for (t, h, kv, e) in [(1, 1, 1, 1), (130, 4, 2, 20), (1300, 2, 1, 64), (600, 2, 2, 128)] {
        let q = normal(&[2, t, h, e], 0);
        let (k, v) = (normal(&[2, t, kv, e], 1), normal(&[2, t, kv, e], 2));
        let scale = default_scale(e);
        let prefix = Tensor::from_ids(&[(t / 2) as i32, t as i32], [2]).unwrap();
        for mask in [
            Mask::causal(),
            Mask::bidirectional(),
            Mask::causal().with_window(100),
            Mask::causal().with_prefix(prefix),
        ] {
            let whole = q.trainable().attention(&k, &v, &mask, scale).unwrap();
            for n in 1..=4usize.min(t) {
                let last = |x: &Tensor| -> Vec<f32> {
                    let rows = x.data().chunks_exact(t * h * e);
                    rows.flat_map(|r| r[(t - n) * h * e..].to_vec()).collect()
                };
                let few = Tensor::from_slice(&last(&q), [2, n, h, e]).unwrap();
                let got = few.attention(&k, &v, &mask, scale).unwrap();
                for (got, want) in got.data().iter().zip(last(&whole)) {
                    assert!((got - want).abs() < 3e-6, "T{t} last {n}: {got}, not {want}");
                }
            }
        }
    }
}

#[test]
fn each_segment_can_have_a_prefix_of_its_own() {
    let ids = |v: &[i32], n: usize| Tensor::from_ids(v, [1, n]).unwrap();
    // Three texts of 4, 1 and 5 tokens; the first 2, 0 and 3 of them are seen by all of the text.
    let starts = ids(&[0, 0, 0, 0, 4, 5, 5, 5, 5, 5], 10);
    let lengths = ids(&[2, 2, 2, 2, 0, 3, 3, 3, 3, 3], 10);
    let mask = Mask::causal().with_segments(starts).with_prefix(lengths);
    let found = mask.intervals(1, 10, 10).unwrap();
    let want = [0, 2, 0, 2, 0, 3, 0, 4, 4, 5, 5, 8, 5, 8, 5, 8, 5, 9, 5, 10];
    assert_eq!(found.ids(), want);
    // Lengths by key without segments: the query's own counts.
    let mask = Mask::causal().with_prefix(ids(&[0, 3, 3, 1], 4));
    assert_eq!(mask.intervals(1, 4, 4).unwrap().ids(), [0, 1, 0, 3, 0, 3, 0, 4]);
    assert_eq!(mask.intervals(1, 2, 4).unwrap().ids(), [0, 3, 0, 4]);
    // Lengths by query are read as such, and lengths of neither shape are an error.
    assert_eq!(mask.intervals(1, 4, 5).unwrap().ids(), [0, 2, 0, 3, 0, 4, 0, 5]);
    assert!(mask.intervals(1, 3, 5).is_err());
}

#[test]
fn leading_keys_stand_before_every_segment() {
    let ids = |v: &[i32], n: usize| Tensor::from_ids(v, [1, n]).unwrap();
    // Without segments, over 2 leading keys and 3 tokens: the keys of a cache, too.
    let causal = Mask::causal().with_leading_keys(2);
    assert_eq!(causal.intervals(1, 3, 5).unwrap().ids(), [0, 3, 0, 4, 0, 5]);
    assert_eq!(causal.intervals(1, 1, 5).unwrap().ids(), [0, 5]);
    let all = Mask::bidirectional().with_leading_keys(2);
    assert_eq!(all.intervals(1, 2, 4).unwrap().ids(), [0, 4, 0, 4]);
    // Texts of 2 and 3 tokens: the keys are 2 leading ones, 2 tokens, 2 leading ones, 3 tokens.
    let packed = causal.clone().with_segments(ids(&[0, 0, 2, 2, 2], 5));
    let want = [0, 3, 0, 4, 4, 7, 4, 8, 4, 9];
    assert_eq!(packed.intervals(1, 5, 9).unwrap().ids(), want);
    let prefix = packed.clone().with_prefix(ids(&[2, 2, 2, 2, 2], 5));
    let want = [0, 4, 0, 4, 4, 8, 4, 8, 4, 9];
    assert_eq!(prefix.intervals(1, 5, 9).unwrap().ids(), want);
    // Keys behind those of a row are seen by nobody.
    assert_eq!(packed.intervals(1, 5, 12).unwrap().ids()[9], 9);
    let says = |mask: &Mask, tq, tk| mask.intervals(1, tq, tk).unwrap_err().to_string();
    assert!(says(&packed, 5, 8).contains("2 before 2 segments of 5 tokens"));
    assert!(says(&causal, 1, 1).contains("at most the number of keys"));
    assert!(says(&causal.with_window(9), 3, 5).contains("no window, which would hide them"));
}

#[test]
fn large_scores_stay_finite() {
    let (mut q, k) = (normal(&[1, 100, 1, 16], 0), normal(&[1, 100, 1, 16], 1));
    q.data_mut().iter_mut().for_each(|x| *x *= 1e4);
    let [q, k, v] = [q, k, normal(&[1, 100, 1, 16], 2)].map(|x| x.trainable());
    let y = q.attention(&k, &v, &Mask::causal(), 1.0).unwrap();
    assert!(y.data().iter().all(|x| x.is_finite() && x.abs() < 10.0));
    y.backward_with(normal(&[1, 100, 1, 16], 3)).unwrap();
    for x in [q, k, v] {
        assert!(x.grad().unwrap().data().iter().all(|g| g.is_finite()));
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let x = |shape: &[usize]| Tensor::zeros(shape).unwrap();
    let (q, k) = (x(&[2, 5, 4, 8]), x(&[2, 7, 2, 8]));
    let mask = Mask::causal();
    let ids = |v: &[i32], shape: &[usize]| Tensor::from_ids(v, shape).unwrap();
    assert!(q.attention(&k, &k, &mask, 1.0).is_ok());
    for (q, k, v) in [
        (x(&[2, 5, 32]), k.clone(), k.clone()),
        (q.clone(), k.clone(), x(&[2, 7, 4, 8])),
        (q.clone(), x(&[1, 7, 2, 8]), x(&[1, 7, 2, 8])),
        (q.clone(), x(&[2, 7, 3, 8]), x(&[2, 7, 3, 8])),
        (q.clone(), x(&[2, 7, 0, 8]), x(&[2, 7, 0, 8])),
        (ids(&[0; 320], &[2, 5, 4, 8]), k.clone(), k.clone()),
    ] {
        assert!(q.attention(&k, &v, &mask, 1.0).is_err());
    }
    for bad in [
        mask.clone().with_n_keys(8),
        mask.clone().with_window(0),
        mask.clone().with_segments(x(&[2, 7])),
        mask.clone().with_segments(ids(&[0; 10], &[2, 5])),
        mask.clone().with_prefix(ids(&[0; 3], &[3])),
    ] {
        assert!(q.attention(&k, &k, &bad, 1.0).is_err());
    }
    let late = mask.clone().with_segments(ids(&[0, 0, 0, 4, 0, 0, 0].repeat(2), &[2, 7]));
    let error = q.attention(&k, &k, &late, 1.0).unwrap_err();
    assert!(matches!(error, Error::Index { index: 4, position: 3, limit: 4, .. }), "{error}");
    let negative = mask.clone().with_prefix(ids(&[0, -1], &[2]));
    let error = q.attention(&k, &k, &negative, 1.0).unwrap_err();
    assert!(matches!(error, Error::Index { index: -1, position: 1, .. }), "{error}");
    assert!(q.attention(&k, &k, &mask, f32::NAN).is_err());
    let qkv = x(&[2, 5, 64]);
    assert!(qkv.attention_packed(4, 2, &mask, 1.0).is_ok());
    for (h, kv) in [(4, 3), (0, 0), (4, 0), (3, 3)] {
        assert!(qkv.attention_packed(h, kv, &mask, 1.0).is_err());
    }
}
