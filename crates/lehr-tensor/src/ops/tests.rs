//! The tests every op passes, derived from its cases.

use std::collections::BTreeSet;

use crate::testing::{Case, error_of_each, hold_settings, relative_error};
use crate::{DType, Device, Tensor, autograd, available_isas, isa, set_isa, threads, tile16};

fn doubles(values: &[f32]) -> impl Iterator<Item = f64> {
    values.iter().map(|v| f64::from(*v))
}

fn check(case: &Case, what: &str, got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{}: size of {what}", case.name);
    let error = relative_error(doubles(got), want);
    assert!(error <= tolerance, "{}: {what} is off by {error:.2e}, not {tolerance:.0e}", case.name);
}

#[test]
fn reference_matches_pytorch() {
    for case in super::all_cases() {
        let Some(golden) = &case.golden else { continue };
        for (i, (got, want)) in case.reference().iter().zip(&golden.outputs).enumerate() {
            let want: Vec<_> = doubles(want).collect();
            let error = relative_error(got.data.iter().copied(), &want);
            // The goldens are rounded to f32: half a unit in the last place.
            assert!(error < 2e-7, "{}: reference output {i} is off by {error:.2e}", case.name);
        }
    }
}

#[test]
fn fast_matches_reference_and_pytorch_on_every_instruction_set() {
    let _held = hold_settings();
    let before = isa();
    for which in available_isas() {
        set_isa(which).unwrap();
        for case in super::all_cases() {
            let (outputs, _) = case.run(None);
            let reference = case.reference();
            assert_eq!(outputs.len(), reference.len(), "{}: number of outputs", case.name);
            for (i, (got, want)) in outputs.iter().zip(&reference).enumerate() {
                assert_eq!(*got.shape(), want.shape, "{}: shape of output {i}", case.name);
                let what = format!("output {i} ({which})");
                check(&case, &what, got.data(), &want.data, case.tolerance.output);
                if let Some(each) = case.each {
                    let error = error_of_each(doubles(got.data()), &want.data);
                    assert!(
                        error <= each,
                        "{}: an element of {what} is off by {error:.2e} of it, not {each:.0e}",
                        case.name
                    );
                }
            }
            let Some(golden) = &case.golden else { continue };
            let (_, grads) = case.run(Some(&golden.cotangents));
            assert_eq!(grads.len(), golden.grads.len(), "{}: golden gradients", case.name);
            for (i, (got, want)) in grads.iter().zip(&golden.grads).enumerate() {
                let want: Vec<_> = doubles(want).collect();
                let what = format!("golden gradient {i} ({which})");
                check(&case, &what, got, &want, case.tolerance.grad);
            }
        }
    }
    set_isa(before).unwrap();
}

/// The largest error of a gradient against finite differences, and the error it would have if it
/// were 1 % too large.
fn gradient_error(case: &Case) -> Vec<(f64, f64, f64)> {
    let (outputs, _) = case.run(None);
    let cotangents = case.cotangents(&outputs);
    let (_, grads) = case.run(Some(&cotangents));
    (0..case.inputs.len())
        .map(|which| {
            let numeric = case.numeric_grad(which, &cotangents);
            let want: Vec<_> = numeric.iter().map(|n| n.1).collect();
            let got = |factor: f64| {
                let of = |n: &(usize, f64)| f64::from(grads[which][n.0]) * factor;
                relative_error(numeric.iter().map(of), &want)
            };
            let largest = want.iter().fold(0.0f64, |m, w| m.max(w.abs()));
            (got(1.0), got(1.01), largest)
        })
        .collect()
}

#[test]
fn backward_matches_finite_differences_and_a_scaled_backward_does_not() {
    for case in super::all_cases().iter().filter(|c| c.smooth) {
        for (which, (error, mutated, largest)) in gradient_error(case).into_iter().enumerate() {
            let tolerance = case.tolerance.grad;
            assert!(error <= tolerance, "{}: gradient {which} is off by {error:.2e}", case.name);
            // Where the gradient is not zero, one too large by 1 % must be noticed.
            assert!(
                largest < 1e-3 || mutated > tolerance,
                "{}: a gradient {which} scaled by 1.01 goes unnoticed",
                case.name
            );
        }
    }
}

#[test]
fn threads_and_repetition_change_no_bit() {
    let _held = hold_settings();
    for case in super::all_cases() {
        let (outputs, _) = case.run(None);
        let cotangents = case.cotangents(&outputs);
        let mut results = Vec::new();
        for n_threads in [1, 2, 3, 2] {
            threads::set_n_threads(n_threads);
            let (outputs, grads) = case.run(Some(&cotangents));
            let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            let outputs: Vec<_> = outputs.iter().map(|y| bits(y.data())).collect();
            results.push((outputs, grads.iter().map(|g| bits(g)).collect::<Vec<_>>()));
        }
        assert!(results.iter().all(|r| *r == results[0]), "{}: bits differ", case.name);
    }
}

/// [`check`] for terms that were rounded to bf16. They are of order 1, and a smaller value is a
/// difference of them: where a query sees one key only, its gradient is `dP − dO · O`, which is 0
/// without rounding.
fn check_rounded(case: &Case, what: &str, got: &[f32], want: &[f64], tolerance: f64) {
    let largest = want.iter().fold(0.0f64, |m, w| m.max(w.abs()));
    check(case, what, got, want, tolerance * largest.max(1.0) / largest.max(0.1));
}

#[test]
fn products_in_bf16_match_those_in_f32_up_to_rounding_and_threads_change_no_bit() {
    let _held = hold_settings();
    let before = tile16::chosen();
    for isa in tile16::available() {
        tile16::set(isa).unwrap();
        let mut n_different = 0;
        for case in super::all_cases() {
            let (outputs, _) = case.run(None);
            let cotangents = case.cotangents(&outputs);
            let (_, want_grads) = case.run(Some(&cotangents));
            let (got, got_grads) = case.run_in_bf16(Some(&cotangents));
            n_different += usize::from(got_grads != want_grads);
            for (i, (got, want)) in got.iter().zip(&outputs).enumerate() {
                let want: Vec<_> = doubles(want.data()).collect();
                check_rounded(&case, &format!("output {i} ({isa})"), got.data(), &want, 1.5e-2);
            }
            for (i, (got, want)) in got_grads.iter().zip(&want_grads).enumerate() {
                let want: Vec<_> = doubles(want).collect();
                check_rounded(&case, &format!("gradient {i} ({isa})"), got, &want, 2.5e-2);
            }
            for n_threads in [1, 3, 2] {
                threads::set_n_threads(n_threads);
                let (again, grads) = case.run_in_bf16(Some(&cotangents));
                let values = |y: &[Tensor]| y.iter().map(Tensor::to_vec).collect::<Vec<_>>();
                assert_eq!(values(&again), values(&got), "{}: {n_threads} threads", case.name);
                assert_eq!(grads, got_grads, "{}: {n_threads} threads", case.name);
            }
        }
        assert!(n_different > 50, "only {n_different} cases have products in bf16");
    }
    tile16::set(before).unwrap();
}

#[test]
fn linear_maps_of_numbers_in_bf16_are_exact_up_to_f32() {
    let _held = hold_settings();
    let before = tile16::chosen();
    let round = |values: &mut [f32]| {
        values.iter_mut().for_each(|v| *v = half::bf16::from_f32(*v).to_f32());
    };
    for isa in tile16::available() {
        tile16::set(isa).unwrap();
        for mut case in super::linear::tests::cases() {
            case.inputs.iter_mut().for_each(|x| round(x.data_mut()));
            let reference = case.reference();
            let (outputs, _) = case.run_in_bf16(None);
            check(&case, "output", outputs[0].data(), &reference[0].data, case.tolerance.output);
            let mut cotangents = case.cotangents(&outputs);
            cotangents.iter_mut().for_each(|c| round(c));
            let (_, want) = case.run(Some(&cotangents));
            let (_, got) = case.run_in_bf16(Some(&cotangents));
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                let want: Vec<_> = doubles(want).collect();
                check(&case, &format!("gradient {i} ({isa})"), got, &want, case.tolerance.grad);
            }
        }
    }
    tile16::set(before).unwrap();
}

/// Ops of one name: the CPU's and the GPU's form of the same formula. The second of each runs in
/// the cases on a GPU.
const TWICE: [&str; 1] = ["cast"];

/// The ops in the source, found by the name they report, are exactly those that cases reach
/// backward.
#[test]
fn every_op_has_a_case_with_a_gradient() {
    let mut declared = Vec::new();
    let mut n_ops = 0;
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops");
    let mut folders = vec![root];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                n_ops += text.lines().filter(|l| l.contains("Op for ") && l.ends_with('{')).count();
                for after in text.split("fn name(&self) -> &'static str {").skip(1) {
                    let name = after.split('"').nth(1);
                    declared.extend(name.map(str::to_owned));
                }
            }
        }
    }
    // This file names the pattern it looks for.
    declared
        .retain(|name| name.chars().all(|c| c.is_ascii_lowercase() || "_0123456789".contains(c)));
    autograd::visited::start();
    for case in super::all_cases() {
        let (outputs, _) = case.run(None);
        case.run(Some(&case.cotangents(&outputs)));
    }
    let visited = autograd::visited::stop();
    assert_eq!(declared.len(), n_ops, "an `impl Op` without a literal name: {declared:?}");
    let mut names = BTreeSet::new();
    let mut twice: Vec<_> = declared.iter().filter(|n| !names.insert((*n).clone())).collect();
    twice.sort();
    assert_eq!(twice, TWICE, "ops of one name");
    assert_eq!(names, visited, "ops in the source, and those that a case reaches");
}

/// A folder that is missing in `ops!` would have no case at all.
#[test]
fn every_folder_is_in_the_list() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops");
    let folders: BTreeSet<String> = std::fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    let listed = super::NAMES.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(folders, listed);
}

/// The second backward finds gradients in the leaves and must add to them.
#[test]
fn a_second_backward_doubles_the_gradients() {
    for case in super::all_cases() {
        let (outputs, _) = case.run(None);
        let cotangents = case.cotangents(&outputs);
        let (_, once) = case.run(Some(&cotangents));
        let inputs: Vec<_> = case.inputs.iter().map(crate::Tensor::trainable).collect();
        for _ in 0..2 {
            for (y, c) in (case.pair.fast)(&inputs).unwrap().into_iter().zip(&cotangents) {
                let c = crate::Tensor::from_slice(c, y.shape()).unwrap();
                y.mul(&c).unwrap().sum().unwrap().backward().unwrap();
            }
        }
        for (i, (x, once)) in inputs.iter().zip(&once).enumerate() {
            let twice: Vec<_> = doubles(once).map(|g| 2.0 * g).collect();
            let got = x.grad().map_or_else(|| vec![0.0; once.len()], |g| g.to_vec());
            check(&case, &format!("doubled gradient {i}"), &got, &twice, case.tolerance.grad);
        }
    }
}

/// How far a result on a GPU may be off, by element type: a few roundings of the largest magnitude.
fn tolerance_on_gpu(case: &Case, dtype: DType) -> (f64, f64) {
    let (output, grad): (f64, f64) = match dtype {
        DType::F32 => (0.0, 0.0),
        DType::BF16 => (1.2e-2, 2.4e-2),
        // Where a cap saturates, the slope is the small difference of numbers rounded to 11 bits.
        _ => (2e-3, 1e-2),
    };
    // A cast to 16 bits has a gradient of 16 bits there.
    let grad = if case.tolerance.grad == 0.0 { 4e-3 } else { grad };
    // The gradients it is compared with have errors of their own.
    (case.tolerance.output.max(output), grad.max(2.0 * case.tolerance.grad))
}

/// One case on GPU 0: outputs against the reference in f64 and gradients against those of the CPU,
/// from the same rounded inputs; twice, for the same bits.
fn check_on_gpu(case: Case, dtype: DType) {
    let device = Device::Cuda(0);
    let round = |x: f32| {
        let x = crate::Tensor::from_slice(&[x], [1]).unwrap();
        x.cast(dtype).unwrap().to_f32().unwrap().data()[0]
    };
    let case = case.map_inputs(round);
    let (outputs, _) = case.run_on(device, dtype, None);
    let (output_tolerance, grad_tolerance) = tolerance_on_gpu(&case, dtype);
    for (i, (got, want)) in outputs.iter().zip(&case.reference()).enumerate() {
        assert_eq!(*got.shape(), want.shape, "{}: shape of output {i}", case.name);
        check(&case, &format!("output {i}"), got.data(), &want.data, output_tolerance);
    }
    // Without recording, ops may take other ways.
    let there: Vec<_> =
        case.inputs.iter().map(|x| x.cast(dtype).unwrap().to_device(device).unwrap()).collect();
    let plain = autograd::no_grad(|| (case.pair.fast)(&there)).unwrap();
    for (i, (got, want)) in plain.iter().zip(&case.reference()).enumerate() {
        let got = got.to_host().unwrap();
        check(
            &case,
            &format!("output {i}, not recorded"),
            got.data(),
            &want.data,
            output_tolerance,
        );
    }
    let mut cotangents = case.cotangents(&outputs);
    cotangents.iter_mut().flatten().for_each(|c| *c = round(*c));
    let (_, want) = case.run(Some(&cotangents));
    let (_, got) = case.run_on(device, dtype, Some(&cotangents));
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        let want: Vec<_> = doubles(want).collect();
        check(&case, &format!("gradient {i}"), got, &want, grad_tolerance);
    }
    let (again_outputs, again) = case.run_on(device, dtype, Some(&cotangents));
    let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    for (a, b) in outputs.iter().zip(&again_outputs) {
        assert_eq!(bits(a.data()), bits(b.data()), "{}: bits of outputs differ", case.name);
    }
    for (a, b) in got.iter().zip(&again) {
        assert_eq!(bits(a), bits(b), "{}: bits of gradients differ", case.name);
    }
}

/// Every case in f32, bf16 and f16 on GPU 0, which is an emulated one unless `LEHR_CUDA=driver`.
#[test]
fn gpu_matches_reference_and_cpu_and_repeats_its_bits() {
    let mut failures = Vec::new();
    crate::cuda::use_emulator();
    crate::cuda::prepare(0, &[DType::F32, DType::BF16, DType::F16], &mut |_| ()).unwrap();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for case in super::all_cases() {
            let name = case.name.clone();
            let run = std::panic::AssertUnwindSafe(|| check_on_gpu(case, dtype));
            if let Err(panic) = std::panic::catch_unwind(run) {
                let said = panic.downcast_ref::<String>().map_or("?", String::as_str);
                failures.push(format!("{dtype}, {name}: {said}"));
            }
        }
    }
    assert!(failures.is_empty(), "{} cases failed:\n{}", failures.len(), failures.join("\n"));
}

/// The same where the library has no algorithm for any epilogue: then there are separate passes.
#[test]
fn gpu_goes_with_plain_products_where_others_are_refused() {
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let mut cases = super::linear::tests::cases();
        cases.extend(super::act_linear::tests::cases());
        cases.extend(super::feed_forward::tests::cases());
        for case in cases {
            crate::cuda::with_plain_products(|| check_on_gpu(case, dtype));
        }
    }
}
