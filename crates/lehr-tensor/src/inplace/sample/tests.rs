//! Choices on GPU 0 against a sort in f64.

use super::*;
use crate::Philox;

const GPU: Device = Device::Cuda(0);
const HOT: Sampling = Sampling { temperature: 1.0, ..Sampling::GREEDY };

/// A text: its settings, its tokens, how many numbers were drawn.
#[derive(Clone)]
struct Text {
    settings: Sampling,
    prompt: Vec<i32>,
    generated: Vec<i32>,
    n_drawn: u64,
}

/// The logits after penalties.
fn penalized(logits: &[f32], text: &Text) -> Vec<f32> {
    let s = &text.settings;
    let mut out = logits.to_vec();
    for (id, l) in out.iter_mut().enumerate() {
        let times = text.generated.iter().filter(|g| **g == id as i32).count();
        if times > 0 || text.prompt.contains(&(id as i32)) {
            let r = s.repetition_penalty;
            *l = if *l > 0.0 { *l / r } else { *l * r };
        }
        if times > 0 {
            *l -= s.frequency_penalty * times as f32 + s.presence_penalty;
        }
    }
    out
}

/// What a text's next token is by the definition. Sums are taken `off` too large in relation, as
/// another rounding might.
fn chosen(logits: &[f32], text: &Text, off: f64) -> i32 {
    let (s, logits) = (&text.settings, penalized(logits, text));
    let mut order: Vec<usize> = (0..logits.len()).collect();
    let is_first = |best: usize, id: usize| if logits[id] > logits[best] { id } else { best };
    let top = (1..logits.len()).fold(0, is_first);
    if s.temperature == 0.0 || s.top_k == 1 {
        return top as i32;
    }
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
    if s.top_k > 0 {
        order.truncate(s.top_k);
    }
    let weight = |id: &usize| f64::from((logits[*id] - logits[top]) / s.temperature).exp();
    let total: f64 = order.iter().map(weight).sum();
    let (mut kept, mut sum) = (0, 0.0);
    for id in &order {
        let is_enough = s.top_p < 1.0 && sum >= f64::from(s.top_p) * total * (1.0 + off);
        if kept > 0 && (is_enough || weight(id) < f64::from(s.min_p) * (1.0 + off)) {
            break;
        }
        kept += 1;
        sum += weight(id);
    }
    let uniform = f64::from(Philox::new(s.seed, 0x5A4D).uniform(text.n_drawn));
    let draw = uniform * sum * (1.0 + off);
    let mut sum = 0.0;
    let is_it = |id: &&usize| {
        sum += weight(id);
        draw < sum
    };
    *order[..kept].iter().find(is_it).unwrap_or(&order[kept - 1]) as i32
}

/// Every setting alone, and together.
fn all_settings() -> Vec<Sampling> {
    let penalties = Sampling {
        repetition_penalty: 1.3,
        frequency_penalty: 0.4,
        presence_penalty: -0.7,
        ..Sampling::GREEDY
    };
    let hot = Sampling { temperature: 1.7, ..penalties };
    vec![
        Sampling::GREEDY,
        penalties,
        Sampling { top_k: 1, ..HOT },
        HOT,
        Sampling { temperature: 0.05, ..HOT },
        Sampling { temperature: 40.0, ..HOT },
        Sampling { top_k: 40, ..HOT },
        Sampling { top_k: 3000, temperature: 3.0, ..HOT },
        Sampling { top_p: 0.9, ..HOT },
        Sampling { top_p: 0.999, temperature: 8.0, ..HOT },
        Sampling { top_p: 1e-20, ..HOT },
        Sampling { min_p: 0.05, ..HOT },
        Sampling { min_p: 1.0, ..HOT },
        Sampling { repetition_penalty: 0.5, ..HOT },
        Sampling { frequency_penalty: 2.0, ..HOT },
        Sampling { presence_penalty: 1.0, ..HOT },
        Sampling { top_k: 60, top_p: 0.8, min_p: 0.01, ..hot },
        Sampling { top_k: 2500, top_p: 0.97, ..hot },
        Sampling { top_k: usize::MAX, top_p: 0.5, min_p: 0.3, ..hot },
    ]
}

/// Kinds of rows that differ in how many candidates are near one another.
fn logits(kind: usize, noise: Philox, n: usize) -> Vec<f32> {
    let mut out = vec![0.0; n];
    noise.fill_normal(&mut out, [3.0, 1.0, 0.0, 2.0, 60.0][kind % 5]);
    match kind % 5 {
        // Many equal ones; with masked ones among them.
        1 => out.iter_mut().for_each(|l| *l = l.round()),
        3 => out.iter_mut().skip(1).step_by(3).for_each(|l| *l = f32::NEG_INFINITY),
        _ => (),
    }
    out
}

/// Chooses twice for each text and compares; how many choices were made, and how many only fit with
/// another rounding.
fn compare(dtype: DType, v: usize, batch: usize, n_padding: usize) -> (usize, usize) {
    let settings = all_settings();
    let sampler = GpuSampler::new(GPU, batch, v).unwrap();
    let (mut n, mut n_near) = (0, 0);
    for first in (0..settings.len()).step_by(batch) {
        let kind = first / batch + v;
        let noise = Philox::new(v as u64, (first * 31 + batch) as u64);
        let stride = v + n_padding;
        let mut values = vec![1e4; batch * stride];
        for row in 0..batch {
            let noise = Philox::new(v as u64, (97 * row + 31 * first + batch) as u64);
            values[row * stride..][..v].copy_from_slice(&logits(kind + row, noise, v));
        }
        let on_gpu = Tensor::from_slice(&values, [batch, stride]).unwrap();
        let on_gpu = on_gpu.to_device(GPU).unwrap().cast(dtype).unwrap();
        // Rounded to the type.
        let values = on_gpu.to_host().unwrap();
        let mut texts = Vec::new();
        for row in 0..batch {
            let tokens = |n: usize, at: usize| -> Vec<i32> {
                (0..n).map(|i| (noise.block((i + at) as u64)[0] as usize % v) as i32).collect()
            };
            let mut settings = settings[(first + row) % settings.len()];
            settings.seed = u64::from(noise.block(row as u64)[1]) << 20;
            let (prompt, generated) = (tokens(9, 100 * row), tokens(5, 100 * row + 50));
            let text = Text { settings, prompt, generated, n_drawn: 7 + row as u64 };
            sampler.set(row, &text.settings, text.n_drawn).unwrap();
            sampler.set_seen(row, &text.prompt, &text.generated).unwrap();
            texts.push(text);
        }
        for step in 0..2 {
            sampler.pick(&on_gpu).unwrap();
            let found = sampler.read().unwrap();
            for (row, (text, found)) in texts.iter_mut().zip(found).enumerate() {
                let row_logits = &values.data()[row * stride..][..v];
                let fits = |off: f64| chosen(row_logits, text, off) == found;
                let is_near = !fits(0.0);
                assert!(
                    !is_near || fits(3e-6) || fits(-3e-6),
                    "{dtype}, V = {v}, B = {batch}, row {row}, step {step}, {:?}: found {found}, \
                     expected {}",
                    text.settings,
                    chosen(row_logits, text, 0.0)
                );
                (n, n_near) = (n + 1, n_near + usize::from(is_near));
                text.generated.push(found);
                let s = &text.settings;
                text.n_drawn += u64::from(s.temperature > 0.0 && s.top_k != 1);
            }
        }
    }
    (n, n_near)
}

#[test]
fn gpu_choices_are_those_of_a_sort() {
    let (mut n, mut n_near) = (0, 0);
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for (v, batch, n_padding) in
            [(1, 3, 0), (2, 1, 0), (31, 8, 0), (1000, 3, 5), (5000, 8, 24), (33_000, 8, 1)]
        {
            let counted = compare(dtype, v, batch, n_padding);
            (n, n_near) = (n + counted.0, n_near + counted.1);
        }
    }
    assert!(n > 700 && n_near * 100 < n, "{n_near} of {n} choices only fit with another rounding");
}

#[test]
fn gpu_draws_follow_the_softmax_and_the_seed() {
    const LOGITS: [f32; 5] = [1.0, 3.0, 2.0, 3.0, -1.0];
    const N: usize = 600;
    let rows: Vec<f32> = (0..8).flat_map(|_| LOGITS).collect();
    let logits = Tensor::from_slice(&rows, [8, 5]).unwrap().to_device(GPU).unwrap();
    let draw = || {
        let sampler = GpuSampler::new(GPU, 8, 5).unwrap();
        for row in 0..8 {
            sampler.set(row, &Sampling { seed: row as u64, ..HOT }, 0).unwrap();
        }
        let step = |_| {
            sampler.pick(&logits).unwrap();
            sampler.read().unwrap()
        };
        (0..N).flat_map(step).collect::<Vec<i32>>()
    };
    let drawn = draw();
    let total: f64 = LOGITS.iter().map(|l| f64::from(*l).exp()).sum();
    for (id, logit) in LOGITS.iter().enumerate() {
        let share = drawn.iter().filter(|d| **d == id as i32).count() as f64 / drawn.len() as f64;
        let want = f64::from(*logit).exp() / total;
        // Four standard deviations.
        let limit = 4.0 * (want * (1.0 - want) / drawn.len() as f64).sqrt();
        assert!((share - want).abs() < limit, "token {id}: {share}, expected {want}");
    }
    assert_eq!(drawn, draw());
    assert_ne!(
        drawn.iter().step_by(8).collect::<Vec<_>>(),
        drawn.iter().skip(1).step_by(8).collect::<Vec<_>>()
    );
}

#[test]
fn gpu_choices_report_nan_and_work_when_recorded() {
    let pick = |settings: &Sampling, logits: &[f32]| {
        let sampler = GpuSampler::new(GPU, 1, logits.len()).unwrap();
        sampler.set(0, settings, 0).unwrap();
        let logits = Tensor::from_slice(logits, [1, logits.len()]).unwrap().to_device(GPU).unwrap();
        sampler.pick(&logits).unwrap();
        // What the next step looks up is an id in any case.
        let id = sampler.ids().to_host().unwrap().ids()[0];
        assert!((0..sampler.n_ids() as i32).contains(&id));
        sampler.read().unwrap()[0]
    };
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    for settings in [Sampling::GREEDY, HOT, Sampling { top_k: 2, top_p: 0.5, ..HOT }] {
        assert_eq!(pick(&settings, &[1.0, nan, 2.0, -nan, 2.0]), -1);
        assert_eq!(pick(&settings, &[nan, nan]), -1);
        assert_eq!(pick(&settings, &[-inf, -inf, -inf]), -1);
        assert_eq!(pick(&settings, &[0.0, inf, 1.0]), -1);
        assert_eq!(pick(&settings, &[-inf, 3.0, -inf]), 1);
        let mut far = vec![0.0; 3 * PART];
        far[2] = 1.0;
        assert_eq!(pick(&Sampling { top_k: 1, ..settings }, &far), 2);
        far[2 * PART + 7] = nan;
        assert_eq!(pick(&settings, &far), -1);
    }
    // Sampling may change between the runs of recorded work; ids, counts and draws stay on the
    // device.
    let values = logits(0, Philox::new(3, 3), 300);
    let on_gpu = Tensor::from_slice(&values, [1, 300]).unwrap().to_device(GPU).unwrap();
    let sampler = GpuSampler::new(GPU, 1, 300).unwrap();
    sampler.pick(&on_gpu).unwrap();
    let graph = crate::cuda::Graph::record(0, || sampler.pick(&on_gpu)).unwrap();
    let mut text = Text { settings: HOT, prompt: vec![4, 4], generated: Vec::new(), n_drawn: 0 };
    sampler.set_seen(0, &text.prompt, &[]).unwrap();
    for (seed, presence_penalty) in [(1, 0.0), (2, 5.0), (3, 5.0)] {
        text.settings = Sampling { seed, presence_penalty, repetition_penalty: 1.5, ..HOT };
        sampler.set(0, &text.settings, text.n_drawn).unwrap();
        for _ in 0..5 {
            graph.launch().unwrap();
            let found = sampler.read().unwrap()[0];
            assert_eq!(found, chosen(&values, &text, 0.0));
            text.generated.push(found);
            text.n_drawn += 1;
        }
    }
}

#[test]
fn gpu_samplers_refuse_what_they_cannot_do() {
    assert!(GpuSampler::new(Device::Cpu, 1, 5).is_err());
    assert!(GpuSampler::new(GPU, 0, 5).is_err());
    assert!(GpuSampler::new(GPU, 1, IDS_MAX + 1).is_err());
    let sampler = GpuSampler::new(GPU, 2, 5).unwrap();
    assert!(sampler.set(2, &HOT, 0).is_err());
    assert!(sampler.set_seen(2, &[], &[]).is_err());
    for bad in [
        Sampling { temperature: -1.0, ..HOT },
        Sampling { top_p: 0.0, ..HOT },
        Sampling { min_p: f32::NAN, ..HOT },
        Sampling { repetition_penalty: 0.0, ..HOT },
        Sampling { presence_penalty: f32::INFINITY, ..HOT },
    ] {
        assert!(sampler.set(0, &bad, 0).is_err(), "{bad:?}");
    }
    let logits = |shape: [usize; 2]| Tensor::zeros_on(GPU, shape, DType::F32).unwrap();
    assert!(sampler.pick(&logits([2, 4])).is_err());
    assert!(sampler.pick(&logits([1, 5])).is_err());
    assert!(sampler.pick(&Tensor::zeros([2, 5]).unwrap()).is_err());
    // Tokens outside of the vocabulary are not counted.
    sampler.set_seen(1, &[-1, 5, 9], &[7]).unwrap();
}
