//! Recorded work, over tensors.

use super::{Graph, StepGraph, overwrite_ids};
use crate::{DType, Device, Result, Tensor};

fn upload(values: &[f32]) -> Result<Tensor> {
    Tensor::from_slice(values, [values.len()])?.to_device(Device::Cuda(0))
}

fn step_graph() -> StepGraph {
    super::use_emulator();
    StepGraph::new(0).unwrap()
}

#[test]
fn gpu_work_recorded_anew_runs_with_the_uploads_of_its_time() {
    let mut work = step_graph();
    let mut sum = upload(&[0.0; 4]).unwrap();
    // The shapes change on the way, and blocks that are freed inside are used again inside.
    for round in 1..5 {
        let values: Vec<f32> = (0..4 * round).map(|i| (i * round) as f32).collect();
        sum = work
            .run(|| {
                let parts = upload(&values)?.reshape([round, 4])?;
                (0..round).try_fold(sum.clone(), |sum, i| {
                    sum.add(&parts.slice(0, i..i + 1)?.reshape([4])?)
                })
            })
            .unwrap();
    }
    let mut want = vec![0.0; 4];
    for round in 1..5 {
        (0..4 * round).for_each(|i| want[i % 4] += (i * round) as f32);
    }
    assert_eq!(sum.to_host().unwrap().to_vec(), want);
}

#[test]
fn gpu_what_recorded_work_frees_is_its_own() {
    let x = upload(&[1.0; 1000]).unwrap();
    // Each sum's block is free when the next but one is computed.
    let chain = || (0..100).try_fold(x.clone(), |sum, _| sum.add(&x));
    let want = chain().unwrap().to_host().unwrap().to_vec();
    let mut sum = None;
    let graph = Graph::record(0, || {
        sum = Some(chain()?);
        Ok(())
    })
    .unwrap();
    let kept: usize = graph.held_bytes();
    assert!((4096..5 * 4096).contains(&kept), "{kept} bytes for a result of 4,000 at a time");
    // Nobody else gets what the graph writes to.
    let others: Vec<_> = (0..50).map(|_| upload(&[7.0; 1000]).unwrap()).collect();
    graph.launch().unwrap();
    graph.launch().unwrap();
    assert_eq!(sum.take().unwrap().to_host().unwrap().to_vec(), want);
    assert!(others.iter().all(|o| o.to_host().unwrap().to_vec() == [7.0; 1000]));
}

#[test]
fn gpu_recorded_work_that_fails_does_not_run() {
    let mut work = step_graph();
    let ids = Tensor::from_ids(&[7], [1]).unwrap().to_device(Device::Cuda(0)).unwrap();
    let failed = work.run(|| {
        overwrite_ids(&ids, &[8])?;
        upload(&[1.0])?.to_host()?.item()
    });
    assert!(failed.is_err(), "results cannot be read while work is recorded");
    assert_eq!(ids.to_host().unwrap().ids(), [7]);
    // And the next is not disturbed.
    work.run(|| overwrite_ids(&ids, &[9])).unwrap();
    assert_eq!(ids.to_host().unwrap().ids(), [9]);
    assert_eq!(ids.dtype(), DType::I32);
}

/// Texts of all `.cu` files below `dir`.
fn kernels_below(dir: &std::path::Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            kernels_below(&path, found);
        } else if path.extension().is_some_and(|e| e == "cu") {
            found.push(std::fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn every_file_of_kernels_is_in_the_list_once() {
    let mut files = Vec::new();
    let root = std::env::var("CARGO_MANIFEST_DIR");
    let root = root.as_deref().unwrap_or(env!("CARGO_MANIFEST_DIR"));
    kernels_below(&std::path::Path::new(root).join("src"), &mut files);
    let mut listed: Vec<_> = super::sources::ALL.iter().map(|s| s.text.to_owned()).collect();
    files.sort();
    listed.sort();
    assert!(files == listed, "{} files of kernels, {} listed", files.len(), listed.len());
}
