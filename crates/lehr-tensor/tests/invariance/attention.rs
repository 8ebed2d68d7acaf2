//! Attention: a prompt at once, in chunks, token by token, in batches and in pages.

use lehr_tensor::ops::attention::{Mask, Pages};
use lehr_tensor::{Isa, Tensor, threads};

use super::support::{below, bits, normal, on_every_isa, shuffled};

/// Heads, key-value heads, and E.
type Heads = (usize, usize, usize);

const HEADS: [Heads; 6] = [(4, 2, 64), (2, 2, 16), (3, 1, 5), (8, 1, 128), (1, 1, 80), (6, 2, 33)];

/// One text: queries `[T, H, E]`, keys and values `[T, K, E]`, and the result of a prompt read as a
/// whole.
struct Text {
    n: usize,
    heads: Heads,
    window: Option<usize>,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    want: Tensor,
}

impl Text {
    fn new(n: usize, heads: Heads, window: Option<usize>, stream: u64) -> Self {
        let (h, kv, e) = heads;
        let q = normal(&[1, n, h, e], 3 * stream);
        let (k, v) =
            (normal(&[1, n, kv, e], 3 * stream + 1), normal(&[1, n, kv, e], 3 * stream + 2));
        threads::set_n_threads(1);
        let want = q.attention(&k, &v, &mask(window), scale(heads)).unwrap();
        Self { n, heads, window, q, k, v, want }
    }

    /// Numbers of a query, and of a key.
    fn widths(&self) -> (usize, usize) {
        let (h, kv, e) = self.heads;
        (h * e, kv * e)
    }

    fn queries(&self, from: usize, to: usize) -> &[f32] {
        let width = self.widths().0;
        &self.q.data()[from * width..to * width]
    }

    /// Asserts that the queries from `from` on gave `got`.
    fn check(&self, what: &str, from: usize, got: &[f32]) {
        let width = self.widths().0;
        for i in 0..got.len() / width {
            let (got, want) = (bits(got, i, width), bits(self.want.data(), from + i, width));
            let differs = got.iter().zip(&want).position(|(a, b)| a != b);
            assert!(
                differs.is_none(),
                "{what}: query {} of {}, heads {:?}, window {:?} differs from that of the whole \
                 prompt at {differs:?}: {} and {}",
                from + i,
                self.n,
                self.heads,
                self.window,
                f32::from_bits(got[differs.unwrap()]),
                f32::from_bits(want[differs.unwrap()]),
            );
        }
    }
}

fn mask(window: Option<usize>) -> Mask {
    match window {
        Some(window) => Mask::causal().with_window(window),
        None => Mask::causal(),
    }
}

fn scale((_, _, e): Heads) -> f32 {
    1.0 / (e as f32).sqrt()
}

/// Cuts `0..n` at random: pieces of 1 to `most`.
fn cuts(n: usize, most: usize, draw: u64) -> Vec<(usize, usize)> {
    let (mut pieces, mut at) = (Vec::new(), 0);
    while at < n {
        let end = n.min(at + 1 + below(most, draw * 1000 + at as u64));
        pieces.push((at, end));
        at = end;
    }
    pieces
}

#[test]
fn a_prompt_in_chunks_gives_the_bits_of_the_whole() {
    on_every_isa(|isa| {
        for (i, heads) in HEADS.into_iter().enumerate() {
            for n in lengths(isa) {
                for window in [None, Some(1 + below(n, i as u64)), Some(70)] {
                    chunks(&Text::new(n, heads, window, i as u64));
                }
            }
        }
    });
}

fn lengths(isa: Isa) -> Vec<usize> {
    if isa == Isa::Scalar { vec![1, 65, 150] } else { vec![1, 2, 63, 64, 65, 200, 700] }
}

/// Chunks of every size, over a cache whose free slots are NaN.
fn chunks(text: &Text) {
    let (h, kv, e) = text.heads;
    let width = text.widths().1;
    let tk = text.n + 9;
    for (draw, most) in [1, 3, 4, 6, 40, 100, 300].into_iter().enumerate() {
        let pieces = cuts(text.n, most, draw as u64);
        // Decoding token by token is checked here and there: it is the slowest.
        let step = (pieces.len() / 40).max(1);
        for (i, &(from, to)) in pieces.iter().enumerate().step_by(step) {
            let n_threads = 1 + (i / step + draw) % 3;
            threads::set_n_threads(n_threads);
            let cache = |x: &Tensor| {
                let mut all = vec![f32::NAN; tk * width];
                all[..to * width].copy_from_slice(&x.data()[..to * width]);
                Tensor::from_slice(&all, [1, tk, kv, e]).unwrap()
            };
            let q = Tensor::from_slice(text.queries(from, to), [1, to - from, h, e]).unwrap();
            let mask = mask(text.window).with_n_keys(to);
            let got = q.attention(&cache(&text.k), &cache(&text.v), &mask, scale(text.heads));
            let what = format!("{n_threads} threads, chunk {from}..{to}");
            text.check(&what, from, got.unwrap().data());
        }
    }
}

#[test]
fn a_batch_gives_the_bits_of_each_text() {
    on_every_isa(|_| {
        for heads in HEADS {
            let texts: Vec<Text> = (0..5).map(|i| Text::new(130, heads, Some(90), i)).collect();
            let (h, kv, e) = heads;
            for (i, tq) in [1, 2, 4, 5, 31].into_iter().enumerate() {
                threads::set_n_threads(1 + i % 3);
                let order = shuffled(5, i as u64);
                let join = |f: &dyn Fn(&Text) -> Vec<f32>| -> Vec<f32> {
                    order.iter().flat_map(|t| f(&texts[*t])).collect()
                };
                let q = join(&|t| t.queries(130 - tq, 130).to_vec());
                let q = Tensor::from_slice(&q, [5, tq, h, e]).unwrap();
                let k = Tensor::from_slice(&join(&|t| t.k.data().to_vec()), [5, 130, kv, e]);
                let v = Tensor::from_slice(&join(&|t| t.v.data().to_vec()), [5, 130, kv, e]);
                let got = q.attention(&k.unwrap(), &v.unwrap(), &mask(Some(90)), scale(heads));
                let got = got.unwrap();
                for (at, t) in order.iter().enumerate() {
                    let part = &got.data()[at * tq * h * e..][..tq * h * e];
                    texts[*t].check(&format!("batch of 5, {tq} queries"), 130 - tq, part);
                }
            }
        }
    });
}

#[test]
fn pages_give_the_bits_of_keys_in_order() {
    on_every_isa(|isa| {
        let lengths: &[usize] =
            if isa == Isa::Scalar { &[66, 9] } else { &[1, 300, 64, 16, 129, 7, 65] };
        for (i, heads) in HEADS.into_iter().enumerate() {
            for window in [None, Some(50)] {
                let texts: Vec<Text> = lengths
                    .iter()
                    .enumerate()
                    .map(|(t, n)| Text::new(*n, heads, window, 10 + t as u64))
                    .collect();
                for page in [1, 4, 16, 64, 128] {
                    for tq in [1, 2, 5, 8, 70] {
                        threads::set_n_threads(1 + (i + tq) % 3);
                        pages(&texts, page, tq);
                    }
                }
            }
        }
    });
}

/// The last `tq` tokens of each text, at most all of them, with keys and values in scattered pages
/// whose free slots are NaN.
fn pages(texts: &[Text], page: usize, tq: usize) {
    let heads = texts[0].heads;
    let ((h, kv, e), width) = (heads, texts[0].widths().1);
    let used = |t: &Text| t.n.div_ceil(page);
    let n_pages = texts.iter().map(used).sum::<usize>() + 3;
    let max = texts.iter().map(used).max().unwrap() + 1;
    let mut order = shuffled(n_pages, (page * 100 + tq) as u64).into_iter();
    let mut table = vec![i32::MAX; texts.len() * max];
    let pool = || vec![f32::NAN; n_pages * page * width];
    let (mut k, mut v) = (pool(), pool());
    for (t, text) in texts.iter().enumerate() {
        for p in 0..used(text) {
            let number = order.next().unwrap();
            table[t * max + p] = number as i32;
            let (from, to) = (p * page, text.n.min((p + 1) * page));
            let at = number * page * width..(number * page + to - from) * width;
            k[at.clone()].copy_from_slice(&text.k.data()[from * width..to * width]);
            v[at].copy_from_slice(&text.v.data()[from * width..to * width]);
        }
    }
    let mut q = vec![0.0; texts.len() * tq * h * e];
    for (q, text) in q.chunks_exact_mut(tq * h * e).zip(texts) {
        let have = tq.min(text.n);
        q[(tq - have) * h * e..].copy_from_slice(text.queries(text.n - have, text.n));
    }
    let shape = [n_pages, page, kv, e];
    let (k, v) = (Tensor::from_slice(&k, shape).unwrap(), Tensor::from_slice(&v, shape).unwrap());
    let q = Tensor::from_slice(&q, [texts.len(), tq, h, e]).unwrap();
    let lengths: Vec<i32> = texts.iter().map(|t| t.n as i32).collect();
    let ids = |v: &[i32], shape: &[usize]| Tensor::from_ids(v, shape).unwrap();
    let pages =
        Pages::new(ids(&table, &[texts.len(), max]), ids(&lengths, &[texts.len()])).unwrap();
    let got = q.attention(&k, &v, &mask(texts[0].window).with_pages(pages), scale(heads)).unwrap();
    for (got, text) in got.data().chunks_exact(tq * h * e).zip(texts) {
        let have = tq.min(text.n);
        let what = format!("pages of {page}, {tq} queries");
        text.check(&what, text.n - have, &got[(tq - have) * h * e..]);
    }
}
