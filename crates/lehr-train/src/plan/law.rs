//! A law of loss against compute, fitted to finished runs of several sizes.

use std::path::{Path, PathBuf};

use crate::metrics::read_metrics;
use crate::rundir::METRICS;
use crate::{Error, Prediction, Recipe, Result, RunDir};

/// Runs that a law is fitted to, at least: one more than it has numbers.
const RUNS_MIN: usize = 4;

/// Largest ratio between the tokens per weight of two runs of one law. A law of compute holds for
/// runs that share their compute in the same way between model and text.
const RATIO_MAX: f64 = 1.25;

/// Exponents that are tried: from nearly flat to far steeper than any that was found (0.05 in
/// Kaplan et al. 2020; about 0.15 in Hoffmann et al. 2022, whose law has a floor).
const EXPONENTS: (f64, f64) = (0.01, 1.0);
const N_EXPONENTS: usize = 1000;

/// The facts about a finished run that a law needs.
#[derive(Clone, Debug, PartialEq)]
pub struct FinishedRun {
    /// Its directory.
    pub dir: PathBuf,
    /// Weights of the matrix products of a token.
    pub weights: f64,
    /// Tokens that it was trained on.
    pub tokens: f64,
    /// Held-out bits per byte at its end.
    pub bits_per_byte: f64,
    recipe: Recipe,
}

impl FinishedRun {
    /// Reads a run that `lehr pretrain` has planned and finished.
    ///
    /// # Errors
    /// If it was not planned, has not reached its last step, or was not evaluated there.
    pub fn read(dir: &Path) -> Result<Self> {
        let recipe = RunDir::load_recipe(dir)?;
        let refused = |found: String, hint: &str| Error::Law {
            found: format!("the run in {} {found}", dir.display()),
            hint: hint.to_owned(),
        };
        let planned = Prediction::read_in(dir)?;
        let (Some(weights), Some(tokens)) = (planned.weights, planned.tokens) else {
            return Err(refused(
                "has no plan with weights and tokens in prediction.json".into(),
                "runs of lehr pretrain --data D --depth N have one; those of a recipe file do not",
            ));
        };
        let metrics = read_metrics(&dir.join(METRICS))?;
        let steps = recipe.train.steps;
        let last = metrics.last().filter(|last| last.step == steps);
        let Some(last) = last else {
            let made = metrics.last().map_or(0, |last| last.step);
            let hint = format!("finish it first: lehr pretrain --resume {}", dir.display());
            return Err(refused(format!("has made {made} of its {steps} steps"), &hint));
        };
        let evaluation = last.eval.as_ref().and_then(|eval| eval.bits_per_byte);
        let Some(bits_per_byte) = evaluation.filter(|bits| bits.is_finite()) else {
            return Err(refused(
                "has no held-out bits per byte at its last step".into(),
                "a run needs held-out text (data.validation_fraction or data.validation_path)",
            ));
        };
        Ok(Self { dir: dir.to_owned(), weights, tokens, bits_per_byte, recipe })
    }

    /// Weights times tokens. The floating-point operations of training are six times as many.
    fn compute(&self) -> f64 {
        self.weights * self.tokens
    }
}

/// The law `bits(C) = floor + scale × (C / C₁)^-exponent` for runs with `C` = weights × tokens.
/// `C₁` is that of the first run.
#[derive(Clone, Debug, PartialEq)]
pub struct LossLaw {
    /// Bits per byte that no run of this kind goes below.
    pub floor: f64,
    /// Bits per byte above the floor at `C₁`.
    pub scale: f64,
    /// How fast the loss falls.
    pub exponent: f64,
    unit: f64,
    runs: Vec<FinishedRun>,
}

impl LossLaw {
    /// Fits the law to at least four runs of one text and recipe that differ in their size. It has
    /// the least squares of differences in bits per byte.
    ///
    /// # Errors
    /// If there are fewer runs, if they do not belong together, or if loss does not fall with size.
    pub fn fit(runs: Vec<FinishedRun>) -> Result<Self> {
        if runs.len() < RUNS_MIN {
            return Err(Error::Law {
                found: format!("{} runs for a law, expected {RUNS_MIN} or more", runs.len()),
                hint: "four depths with the same --tokens-per-weight, each to its end".into(),
            });
        }
        for run in &runs[1..] {
            let name = format!("the run in {}", run.dir.display());
            check_alike(&runs[0], &run.recipe, &name)?;
            check_ratio(&runs[0], run.tokens / run.weights, &name)?;
        }
        let points: Vec<_> = runs.iter().map(|run| (run.compute(), run.bits_per_byte)).collect();
        let unit = points[0].0;
        let (floor, scale, exponent) = least_squares(&points, unit).ok_or_else(|| Error::Law {
            found: "the held-out loss of these runs does not fall with their size".into(),
            hint: "a law needs runs of different sizes, each larger than the one before".into(),
        })?;
        Ok(Self { floor, scale, exponent, unit, runs })
    }

    /// Predicts the held-out bits per byte of a run of `recipe` with so many weights and tokens,
    /// and the range of the predictions if any one run is left out.
    ///
    /// # Errors
    /// If the run differs from those of the law in more than its size, or in its tokens per weight.
    pub fn predict(
        &self,
        recipe: &Recipe,
        (weights, tokens): (f64, f64),
    ) -> Result<(f64, (f64, f64))> {
        check_alike(&self.runs[0], recipe, "the planned run")?;
        check_ratio(&self.runs[0], tokens / weights, "the planned run")?;
        let compute = weights * tokens;
        let at = |(floor, scale, exponent): (f64, f64, f64)| {
            floor + scale * (compute / self.unit).powf(-exponent)
        };
        let predicted = at((self.floor, self.scale, self.exponent));
        let mut range = (predicted, predicted);
        for left_out in 0..self.runs.len() {
            let others = self.runs.iter().enumerate().filter(|(i, _)| *i != left_out);
            let points: Vec<_> =
                others.map(|(_, run)| (run.compute(), run.bits_per_byte)).collect();
            let Some(law) = least_squares(&points, self.unit) else { continue };
            range = (range.0.min(at(law)), range.1.max(at(law)));
        }
        Ok((predicted, range))
    }
}

impl std::fmt::Display for LossLaw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { floor, scale, exponent, unit, .. } = self;
        write!(f, "{floor:.3} + {scale:.3} × (weights × tokens / {unit:.3e})^-{exponent:.3}")
    }
}

/// Returns floor, scale and exponent with the least squares: for each exponent the other two follow
/// from linear equations. `None` if no law falls.
fn least_squares(points: &[(f64, f64)], unit: f64) -> Option<(f64, f64, f64)> {
    let (low, high) = EXPONENTS;
    let mut best: Option<(f64, (f64, f64, f64))> = None;
    for i in 0..N_EXPONENTS {
        let share = i as f64 / (N_EXPONENTS - 1) as f64;
        let exponent = low * (high / low).powf(share);
        let powers = points.iter().map(|(c, y)| ((c / unit).powf(-exponent), *y));
        let (floor, scale) = line(&powers.collect::<Vec<_>>());
        if !(scale > 0.0 && floor.is_finite()) {
            continue;
        }
        let error = |(c, y): &(f64, f64)| floor + scale * (c / unit).powf(-exponent) - y;
        let squares: f64 = points.iter().map(|point| error(point).powi(2)).sum();
        if best.is_none_or(|(least, _)| squares < least) {
            best = Some((squares, (floor, scale, exponent)));
        }
    }
    best.map(|(_, law)| law)
}

/// Returns the line `y = a + b × x` of least squares with `a` of 0 or more.
fn line(points: &[(f64, f64)]) -> (f64, f64) {
    let n = points.len() as f64;
    let sum = |f: fn(&(f64, f64)) -> f64| points.iter().map(f).sum::<f64>();
    let (x, y, xx, xy) = (sum(|p| p.0), sum(|p| p.1), sum(|p| p.0 * p.0), sum(|p| p.0 * p.1));
    let b = (n * xy - x * y) / (n * xx - x * x);
    let a = (y - b * x) / n;
    if a >= 0.0 { (a, b) } else { (0.0, xy / xx) }
}

/// Settings that follow from the size of a model, or say where a run is and what it shows.
const OF_SIZE: [&str; 7] = [
    "run.",
    "train.",
    "schedule.",
    "optimizer.embeddings",
    "optimizer.head",
    "sample.",
    "checkpoint.",
];
/// Those of the model.
const SIZES: [&str; 5] = ["n_layers", "hidden_size", "n_heads", "n_kv_heads", "mlp_size"];

/// Checks that a run differs from the first one in nothing except its size and what follows from
/// it.
fn check_alike(first: &FinishedRun, other: &Recipe, name: &str) -> Result<()> {
    let follows = |key: &str| {
        let of_model = key.strip_prefix("model.").is_some_and(|key| SIZES.contains(&key));
        // How many tokens an evaluation reads is compared below.
        of_model || key.starts_with("eval.") || OF_SIZE.iter().any(|part| key.starts_with(part))
    };
    let mut differs = other.differences(&first.recipe);
    differs.retain(|text| !follows(text.split(' ').next().unwrap_or(text)));
    let evaluated = |Recipe { eval, train, .. }: &Recipe| {
        eval.batches_max * (train.batch_size * train.seq_len) as u64
    };
    let (a, b) = (evaluated(&first.recipe), evaluated(other));
    if a != b {
        differs.push(format!("evaluations read up to {b} tokens instead of {a}"));
    }
    if differs.is_empty() {
        return Ok(());
    }
    Err(Error::Law {
        found: format!(
            "{name} differs from the run in {} in more than its size: {}",
            first.dir.display(),
            differs.join("; ")
        ),
        hint: "runs of one law share text and settings; --set gives a planned run what they have"
            .into(),
    })
}

fn check_ratio(first: &FinishedRun, ratio: f64, name: &str) -> Result<()> {
    let expected = first.tokens / first.weights;
    let times = (ratio / expected).max(expected / ratio);
    if times <= RATIO_MAX {
        return Ok(());
    }
    Err(Error::Law {
        found: format!(
            "{name} has {ratio:.2} tokens per weight, and the run in {} has {expected:.2}: a law \
             of compute needs one ratio",
            first.dir.display()
        ),
        hint:
            "--tokens-per-weight sets it; a text is read at most three times, so large models may \
               need a smaller number"
                .into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn predict(law: &LossLaw, run: &FinishedRun) -> Result<(f64, (f64, f64))> {
        law.predict(&run.recipe, (run.weights, run.tokens))
    }

    fn run(depth: f64, ratio: f64, bits: impl Fn(f64) -> f64) -> FinishedRun {
        let weights = 1e5 * depth.powi(3);
        let tokens = ratio * weights;
        let bits_per_byte = bits(weights * tokens);
        let recipe = Recipe::base();
        FinishedRun { dir: format!("d{depth}").into(), weights, tokens, bits_per_byte, recipe }
    }

    #[test]
    fn a_law_is_found_and_predicts() {
        let law = |c: f64| 1.2 + 1.5 * (c / 1e10).powf(-0.17);
        let runs = [1.0, 2.0, 3.0, 4.0].map(|depth| run(depth, 0.5, law)).to_vec();
        let found = LossLaw::fit(runs).unwrap();
        let next = run(5.0, 0.5, law);
        let (predicted, (low, high)) = predict(&found, &next).unwrap();
        assert!((predicted - next.bits_per_byte).abs() < 1e-3, "{predicted}");
        assert!((found.exponent - 0.17).abs() < 5e-3 && (found.floor - 1.2).abs() < 0.02);
        assert!(low <= predicted && predicted <= high && high - low < 0.01);
    }

    #[test]
    fn noise_widens_the_range() {
        let law = |c: f64| 1.2 + 1.5 * (c / 1e10).powf(-0.17) + 0.01 * (c.to_bits() % 3) as f64;
        let runs = [1.0, 2.0, 3.0, 4.0].map(|depth| run(depth, 0.5, law)).to_vec();
        let next = run(5.0, 0.5, law);
        let (_, (low, high)) = predict(&LossLaw::fit(runs).unwrap(), &next).unwrap();
        assert!(high - low > 0.003, "{low} to {high}");
    }

    #[test]
    fn what_does_not_belong_together_is_refused() {
        let falls = |c: f64| 1.2 + 1.5 * (c / 1e10).powf(-0.17);
        let message = |runs: Vec<FinishedRun>| LossLaw::fit(runs).unwrap_err().to_string();
        let four = || [1.0, 2.0, 3.0, 4.0].map(|depth| run(depth, 0.5, falls)).to_vec();
        assert!(message(four()[..3].to_vec()).contains("3 runs for a law, expected 4"));

        let mut ratio = four();
        ratio[3] = run(4.0, 1.0, falls);
        assert!(
            message(ratio).contains("d4 has 1.00 tokens per weight, and the run in d1 has 0.50")
        );

        let mut data = four();
        data[2].recipe.data.path = "other.txt".into();
        assert!(message(data).contains("data.path is \"other.txt\" instead of "));

        let rises = [1.0, 2.0, 3.0, 4.0].map(|depth| run(depth, 0.5, |c| c / 1e12)).to_vec();
        assert!(message(rises).contains("does not fall"));

        let law = LossLaw::fit(four()).unwrap();
        let error = predict(&law, &run(5.0, 3.0, falls)).unwrap_err();
        assert!(error.to_string().contains("the planned run has 3.00 tokens per weight"));
        assert!(error.hint().is_some());
        // A planned run with other settings is none of this law.
        let mut planned = run(5.0, 0.5, falls);
        planned.recipe.data.document_bytes = 7;
        let error = predict(&law, &planned).unwrap_err().to_string();
        assert!(error.contains("the planned run differs") && error.contains("document_bytes is 7"));
    }
}
