//! Writes into scattered pages, on the CPU and on GPU 0.

use super::*;
use crate::{Device, Philox};

const GPU: Device = Device::Cuda(0);

fn normal(shape: &[usize], stream: u64) -> Tensor {
    let mut x = Tensor::zeros(shape).unwrap();
    Philox::new(8, stream).fill_normal(x.data_mut(), 1.0);
    x
}

/// Text by text and page by page: a text has the pages that are left by those before, from the last
/// down.
fn pages_of(lengths: &[i32], n_pages: usize, size: usize, max: usize) -> Pages {
    let mut table = vec![i32::MAX; lengths.len() * max];
    let mut free = 0..n_pages as i32;
    for (row, length) in table.chunks_mut(max).zip(lengths) {
        let used = (*length as usize).div_ceil(size);
        row[..used].iter_mut().for_each(|page| *page = free.next_back().unwrap());
    }
    let table = Tensor::from_ids(&table, [lengths.len(), max]).unwrap();
    Pages::new(table, Tensor::from_ids(lengths, [lengths.len()]).unwrap()).unwrap()
}

fn on(pages: &Pages, device: Device) -> Pages {
    let [table, lengths] = [pages.table(), pages.lengths()].map(|x| x.to_device(device).unwrap());
    Pages::new(table, lengths).unwrap()
}

#[test]
fn new_tokens_land_in_their_pages_and_nowhere_else() {
    for (lengths, t, size, width) in [
        (vec![1], 1, 16, [2, 8]),
        (vec![5, 0, 16, 17, 33], 1, 16, [1, 5]),
        (vec![40, 9, 64], 8, 8, [2, 3]),
        (vec![3, 0, 70], 70, 32, [3, 4]),
    ] {
        let (n_pages, max) = (16, 9);
        let pages = pages_of(&lengths, n_pages, size, max);
        let pool = [n_pages, size, width[0], width[1]];
        let new = [1, 2].map(|i| normal(&[lengths.len(), t, width[0], width[1]], i));
        let before = [3, 4].map(|i| normal(&pool, i));
        let len = width[0] * width[1];
        let want: Vec<Vec<f32>> = before
            .iter()
            .zip(&new)
            .map(|(before, new)| {
                let mut want = before.to_vec();
                for (b, length) in lengths.iter().enumerate() {
                    for i in (0..t).filter(|i| *length as usize + i >= t) {
                        let token = *length as usize + i - t;
                        let page = pages.table().ids()[b * max + token / size] as usize;
                        want[(page * size + token % size) * len..][..len]
                            .copy_from_slice(&new.data()[(b * t + i) * len..][..len]);
                    }
                }
                want
            })
            .collect();
        for (device, dtype) in
            [(Device::Cpu, DType::F32), (GPU, DType::F32), (GPU, DType::BF16), (GPU, DType::F16)]
        {
            // Copies of their own: on the CPU only unshared pools are written.
            let placed = |x: &Tensor| {
                let own = Tensor::from_slice(x.data(), x.shape()).unwrap();
                own.to_device(device).unwrap().cast(dtype).unwrap()
            };
            let rounded = |values: &[f32]| {
                let x = Tensor::from_slice(values, [values.len()]).unwrap();
                placed(&x).to_host().unwrap().to_vec()
            };
            let [k, v] = &new;
            let (k, v) = (placed(k), placed(v));
            let mut pools = before.iter().map(placed);
            let (mut a, mut b) = (pools.next().unwrap(), pools.next().unwrap());
            write_pages([&mut a, &mut b], [&k, &v], &on(&pages, device)).unwrap();
            for (found, want) in [a, b].iter().zip(&want) {
                assert_eq!(found.to_host().unwrap().data(), rounded(want), "{lengths:?} {dtype}");
            }
        }
    }
}

#[test]
fn gpu_texts_advance_but_for_rows_without_one() {
    let ids =
        |v: &[i32], shape: &[usize]| Tensor::from_ids(v, shape).unwrap().to_device(GPU).unwrap();
    let (positions, lengths) = (ids(&[4, 7, 0], &[3, 1]), ids(&[5, 0, 1], &[3]));
    advance_texts(&positions, &lengths).unwrap();
    assert_eq!(positions.to_host().unwrap().ids(), [5, 7, 1]);
    assert_eq!(lengths.to_host().unwrap().ids(), [6, 0, 2]);
    assert!(advance_texts(&ids(&[1], &[1, 1]), &lengths).is_err());
    assert!(advance_texts(&Tensor::from_ids(&[1, 2, 3], [3, 1]).unwrap(), &lengths).is_err());
}

#[test]
fn pages_that_are_not_there_are_errors() {
    let pool = || Tensor::zeros([3, 4, 1, 2]).unwrap();
    let new = Tensor::zeros([2, 1, 1, 2]).unwrap();
    let write = |table: &[i32], lengths: &[i32], pool: [Tensor; 2], new: [&Tensor; 2]| {
        let [mut k, mut v] = pool;
        let n = lengths.len();
        let table = Tensor::from_ids(table, [n, table.len() / n]).unwrap();
        let pages = Pages::new(table, Tensor::from_ids(lengths, [n]).unwrap()).unwrap();
        write_pages([&mut k, &mut v], new, &pages)
    };
    let both = [&new, &new];
    write(&[0, 1, 2, 9], &[5, 4], [pool(), pool()], both).unwrap();
    for (table, lengths) in [
        ([0, 3, 2, 9], [5, 4]),
        ([0, 1, -1, 9], [5, 4]),
        ([0, 1, 2, 9], [9, 4]),
        ([0, 1, 2, 9], [5, -1]),
    ] {
        let error = write(&table, &lengths, [pool(), pool()], both).unwrap_err();
        assert!(matches!(error, Error::Index { .. }), "{error}");
    }
    let odd = || Tensor::zeros([3, 3, 1, 2]).unwrap();
    assert!(write(&[0, 1, 2, 9], &[5, 4], [odd(), odd()], both).is_err());
    assert!(write(&[0, 1, 2, 9], &[5, 4], [pool(), odd()], both).is_err());
    assert!(write(&[0, 1, 2], &[5, 4, 1], [pool(), pool()], both).is_err());
    let wide = Tensor::zeros([2, 1, 1, 3]).unwrap();
    assert!(write(&[0, 1, 2, 9], &[5, 4], [pool(), pool()], [&new, &wide]).is_err());
    let ids = |n: usize| Tensor::from_ids(&vec![0; n], [n]).unwrap();
    assert!(Pages::new(ids(4), ids(2)).is_err());
    assert!(Pages::new(new.clone(), ids(2)).is_err());
}
