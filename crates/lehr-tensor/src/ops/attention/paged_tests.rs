//! Attention over pages, compared with the definition, on the CPU and on GPU 0.

use super::reference::{self, Rules};
use super::{Mask, Pages};
use crate::testing::Array;
use crate::{DType, Device, Philox, Tensor, no_grad};

const GPU: Device = Device::Cuda(0);

fn normal(shape: &[usize], stream: u64) -> Tensor {
    let mut x = Tensor::zeros(shape).unwrap();
    Philox::new(21, stream).fill_normal(x.data_mut(), 1.0);
    x
}

/// Texts in scattered pages, among pages that are nobody's and full of NaN.
struct Texts {
    lengths: Vec<i32>,
    /// P.
    size: usize,
    table: Vec<i32>,
    max: usize,
    k: Tensor,
    v: Tensor,
}

impl Texts {
    fn new(lengths: &[i32], size: usize, (kv, e): (usize, usize)) -> Self {
        let used = |n: i32| (n as usize).div_ceil(size);
        let n_used: usize = lengths.iter().map(|n| used(*n)).sum();
        let n_pages = n_used + 5;
        let max = lengths.iter().map(|n| used(*n)).max().unwrap_or(0) + 2;
        // An order of all pages by noise.
        let noise = Philox::new(size as u64, n_used as u64);
        let mut order: Vec<i32> = (0..n_pages as i32).collect();
        order.sort_by_key(|page| noise.block(*page as u64)[0]);
        let mut table = vec![i32::MAX; lengths.len() * max];
        let mut next = order.iter();
        let mut is_used = vec![false; n_pages * size];
        for (row, n) in table.chunks_mut(max).zip(lengths) {
            for (i, page) in row[..used(*n)].iter_mut().enumerate() {
                *page = *next.next().unwrap();
                let filled = (*n as usize - i * size).min(size);
                is_used[*page as usize * size..][..filled].fill(true);
            }
        }
        let pool = |stream| {
            let mut pool = normal(&[n_pages, size, kv, e], stream);
            let rows = pool.data_mut().chunks_exact_mut((kv * e).max(1));
            rows.zip(&is_used).filter(|(_, used)| !**used).for_each(|(row, _)| row.fill(f32::NAN));
            pool
        };
        Self { lengths: lengths.to_vec(), size, table, max, k: pool(1), v: pool(2) }
    }

    fn pages(&self, device: Device) -> Pages {
        let b = self.lengths.len();
        let table = Tensor::from_ids(&self.table, [b, self.max]).unwrap();
        let lengths = Tensor::from_ids(&self.lengths, [b]).unwrap();
        Pages::new(table, lengths).unwrap().to_device(device).unwrap()
    }

    /// The keys or values of a text in order, `[1, n, K, E]`.
    fn in_order(&self, pool: &Tensor, text: usize) -> Array {
        let (n, shape) = (self.lengths[text] as usize, pool.shape());
        let width = shape[2] * shape[3];
        let row = |i: usize| {
            let page = self.table[text * self.max + i / self.size] as usize;
            &pool.data()[(page * self.size + i % self.size) * width..][..width]
        };
        let data = (0..n).flat_map(|i| row(i).iter().map(|x| f64::from(*x))).collect();
        Array { shape: vec![1, n, shape[2], shape[3]], data }
    }
}

fn mask(rules: &Rules) -> Mask {
    let mut mask = if rules.causal { Mask::causal() } else { Mask::bidirectional() };
    if let Some(prefix) = &rules.prefix {
        mask = mask.with_prefix(Tensor::from_ids(prefix, [prefix.len()]).unwrap());
    }
    match rules.window {
        Some(window) => mask.with_window(window),
        None => mask,
    }
}

/// Compares all texts with the definition, on `device` in `dtype`; twice, and the bits are the
/// same.
fn compare(
    lengths: &[i32],
    size: usize,
    (tq, h, kv, e): (usize, usize, usize, usize),
    rules: &Rules,
    (device, dtype): (Device, DType),
) {
    let mut texts = Texts::new(lengths, size, (kv, e));
    let placed = |x: &Tensor| x.to_device(device).unwrap().cast(dtype).unwrap();
    let q = placed(&normal(&[lengths.len(), tq, h, e], 0));
    let (k, v) = (placed(&texts.k), placed(&texts.v));
    let mask = mask(rules).with_pages(texts.pages(device));
    let scale = 1.0 / (e as f32).sqrt();
    let run = || no_grad(|| q.attention(&k, &v, &mask, scale)).unwrap().to_host().unwrap();
    let found = run();
    assert_eq!(found.to_vec(), run().to_vec(), "the same bits twice");
    // What was rounded.
    (texts.k, texts.v) = (k.to_host().unwrap(), v.to_host().unwrap());
    let q = q.to_host().unwrap();
    let tolerance = match dtype {
        DType::F32 => 5e-6,
        DType::F16 => 2e-3,
        _ => 1.6e-2,
    };
    for (b, length) in lengths.iter().enumerate() {
        let part = |x: &Tensor| x.data()[b * tq * h * e..][..tq * h * e].to_vec();
        let q = part(&q).iter().map(|x| f64::from(*x)).collect();
        let q = Array { shape: vec![1, tq, h, e], data: q };
        let (k, v) = (texts.in_order(&texts.k, b), texts.in_order(&texts.v, b));
        let prefix = rules.prefix.as_ref().map(|all| vec![all[b]]);
        let rules = Rules { prefix, ..rules.clone() };
        let want = reference::attention(&q, &k, &v, &rules, f64::from(scale));
        for (found, want) in part(&found).iter().zip(&want.data) {
            assert!(
                (f64::from(*found) - want).abs() <= tolerance,
                "{device} {dtype}, text of {length}, P = {size}, Tq = {tq}, H = {h}, K = {kv}, \
                 E = {e}: {found}, not {want}"
            );
        }
    }
}

fn causal(window: Option<usize>) -> Rules {
    Rules { causal: true, window, ..Rules::default() }
}

fn places() -> [(Device, DType); 4] {
    [(Device::Cpu, DType::F32), (GPU, DType::F32), (GPU, DType::BF16), (GPU, DType::F16)]
}

#[test]
fn gpu_and_cpu_attend_over_pages_as_defined() {
    for place in places() {
        // Boundaries of pages of 16, an empty row among them.
        compare(&[1, 15, 16, 17, 0, 31, 32, 33, 300], 16, (1, 4, 2, 8), &causal(None), place);
        compare(&[300, 64, 129], 32, (1, 2, 2, 64), &causal(Some(20)), place);
        compare(&[7, 250, 48], 16, (1, 6, 1, 40), &causal(None), place);
        compare(&[99], 16, (1, 2, 1, 128), &causal(Some(1)), place);
        compare(&[60, 3, 17], 8, (3, 4, 1, 5), &causal(Some(13)), place);
        compare(&[260, 70, 1], 32, (2, 1, 1, 80), &Rules::default(), place);
        compare(&[90, 9, 8], 1, (8, 4, 2, 24), &causal(None), place);
    }
}

#[test]
fn gpu_and_cpu_attend_by_many_queries_over_pages() {
    for place in places() {
        // A whole text, the end of one, several texts of different lengths, one of them shorter.
        compare(&[70], 16, (70, 4, 2, 8), &causal(None), place);
        compare(&[200], 16, (65, 2, 1, 64), &causal(None), place);
        compare(&[150], 16, (33, 4, 4, 32), &causal(Some(40)), place);
        compare(&[90, 20, 130, 0, 5], 8, (20, 4, 2, 24), &causal(Some(50)), place);
        compare(&[100], 32, (5, 2, 2, 16), &Rules::default(), place);
    }
}

#[test]
fn gpu_and_cpu_queries_of_a_prefix_see_all_of_it() {
    for place in places() {
        let rules =
            |prefix: &[i32], window| Rules { prefix: Some(prefix.to_vec()), ..causal(window) };
        // A prefix that is run, one that was, and queries on both sides of its end.
        compare(&[40], 16, (40, 4, 2, 8), &rules(&[33], None), place);
        compare(&[60], 16, (12, 2, 1, 32), &rules(&[33], None), place);
        compare(&[60], 16, (1, 2, 1, 32), &rules(&[33], None), place);
        compare(&[50, 31], 16, (3, 2, 2, 16), &rules(&[49, 4], None), place);
        compare(&[50, 31], 16, (24, 2, 2, 16), &rules(&[30, 20], Some(25)), place);
    }
}

#[test]
fn gpu_widths_of_all_kernels_read_pages() {
    for place in places() {
        for e in [32, 96, 192, 256] {
            for h in [1, 2, 4] {
                compare(&[77, 16, 130], 16, (1, h, 1, e), &causal(Some(90)), place);
            }
        }
    }
}

#[test]
fn every_length_is_read_to_its_end() {
    for first in (1..300).step_by(9) {
        let lengths: Vec<i32> = (first..first + 9).collect();
        compare(&lengths, 16, (1, 2, 1, 16), &causal(None), (Device::Cpu, DType::F32));
    }
    for first in [1, 10, 28, 61, 120, 250] {
        let lengths: Vec<i32> = (first..first + 9).collect();
        for place in places() {
            compare(&lengths, 16, (1, 4, 1, 8), &causal(None), place);
        }
    }
}

#[test]
fn gpu_and_cpu_pages_give_what_keys_in_order_give() {
    let (size, shape) = (16, (2, 20));
    let texts = Texts::new(&[700, 700], size, shape);
    let rows: Vec<Vec<f32>> = [&texts.k, &texts.v]
        .map(|pool| (0..2).flat_map(|b| texts.in_order(pool, b).data).map(|x| x as f32).collect())
        .to_vec();
    let q = normal(&[2, 1, 4, 20], 0);
    let [k, v] = [0, 1].map(|i| Tensor::from_slice(&rows[i], [2, 700, 2, 20]).unwrap());
    let mask = Mask::causal().with_window(600);
    for device in [Device::Cpu, GPU] {
        let on = |x: &Tensor| x.to_device(device).unwrap();
        let paged = mask.clone().with_pages(texts.pages(device));
        let found = on(&q).attention(&on(&texts.k), &on(&texts.v), &paged, 0.2).unwrap();
        let want = on(&q).attention(&on(&k), &on(&v), &mask, 0.2).unwrap();
        let (found, want) = (found.to_host().unwrap(), want.to_host().unwrap());
        let mut pairs = found.data().iter().zip(want.data());
        assert!(pairs.all(|(a, b)| (a - b).abs() < 1e-6), "{device}");
    }
}

#[test]
fn gpu_recorded_attention_follows_texts_that_grow() {
    let mut texts = Texts::new(&[40, 3, 64], 16, (1, 8));
    let q = normal(&[3, 1, 2, 8], 0).to_device(GPU).unwrap();
    let (k, v) = (texts.k.to_device(GPU).unwrap(), texts.v.to_device(GPU).unwrap());
    let pages = texts.pages(GPU);
    let mask = Mask::causal().with_pages(pages.clone());
    let mut out = no_grad(|| q.attention(&k, &v, &mask, 0.3)).unwrap();
    let graph = crate::cuda::Graph::record(0, || {
        out = no_grad(|| q.attention(&k, &v, &mask, 0.3))?;
        Ok(())
    });
    let graph = graph.unwrap();
    // A text ends, and its page goes to another.
    for lengths in [[39, 2, 64], [40, 0, 50], [41, 16, 1]] {
        texts.lengths = lengths.to_vec();
        texts.table.swap(0, 2 * texts.max);
        crate::cuda::overwrite_ids(pages.lengths(), &texts.lengths).unwrap();
        crate::cuda::overwrite_ids(pages.table(), &texts.table).unwrap();
        graph.launch().unwrap();
        let want = no_grad(|| {
            let mask = Mask::causal().with_pages(texts.pages(GPU));
            q.attention(&k, &v, &mask, 0.3)
        });
        let bits = |x: &Tensor| -> Vec<u32> {
            x.to_host().unwrap().data().iter().map(|x| x.to_bits()).collect()
        };
        assert_eq!(bits(&out), bits(&want.unwrap()), "{lengths:?}");
    }
}

#[test]
fn what_pages_cannot_do_is_an_error() {
    let texts = Texts::new(&[5, 9], 4, (2, 8));
    let (k, v) = (&texts.k, &texts.v);
    let mask = Mask::causal().with_pages(texts.pages(Device::Cpu));
    let q = |shape: &[usize]| normal(shape, 0);
    let good = q(&[2, 1, 4, 8]);
    assert!(good.attention(k, v, &mask, 1.0).is_ok());
    for bad in [&[3, 1, 4, 8], &[2, 1, 3, 8], &[2, 1, 4, 6]] {
        assert!(q(bad).attention(k, v, &mask, 1.0).is_err(), "{bad:?}");
    }
    assert!(q(&[2, 9, 4, 8]).attention(k, v, &mask, 1.0).is_ok());
    assert!(good.attention(k, v, &mask, f32::NAN).is_err());
    assert!(good.trainable().attention(k, v, &mask, 1.0).is_err());
    assert!(good.attention(k, v, &mask.clone().with_window(0), 1.0).is_err());
    let starts = Tensor::from_ids(&[0; 24], [2, 12]).unwrap();
    assert!(good.attention(k, v, &mask.clone().with_segments(starts), 1.0).is_err());
    // One length for each sequence.
    let prefix = Tensor::from_ids(&[1, 1, 1], [3]).unwrap();
    assert!(good.attention(k, v, &mask.with_prefix(prefix), 1.0).is_err());
    // Many queries need lengths that the host knows.
    let on_gpu = texts.pages(GPU);
    let unknown = Pages::new(on_gpu.table().clone(), on_gpu.lengths().clone()).unwrap();
    let [q, k, v] = [&q(&[2, 9, 4, 8]), k, v].map(|x| x.to_device(GPU).unwrap());
    let error = q.attention(&k, &v, &Mask::causal().with_pages(unknown), 1.0).unwrap_err();
    assert!(error.to_string().contains("only the GPU knows"), "{error}");
    assert!(q.attention(&k, &v, &Mask::causal().with_pages(on_gpu), 1.0).is_ok());
    let (k, v, good) = (&texts.k, &texts.v, &good);
    let mut far = Texts::new(&[5, 9], 4, (2, 8));
    far.table[0] = 99;
    let mask = Mask::causal().with_pages(far.pages(Device::Cpu));
    let error = good.attention(k, v, &mask, 1.0).unwrap_err();
    assert!(matches!(error, crate::Error::Index { index: 99, .. }), "{error}");
}
