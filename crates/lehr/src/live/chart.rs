//! The loss curve in braille characters, which have two columns and four rows of dots each.

/// Largest number of points that are kept. A longer curve has each point stand for twice as many
/// steps.
const POINTS_MAX: usize = 1024;
/// Columns left of the curve, for the numbers of the axis.
const AXIS: usize = 8;
/// The mark of an evaluation.
const MARK: char = 'o';

/// A curve of bounded size, however long the run.
#[derive(Debug, Default)]
pub(super) struct Curve {
    /// The step before the first point.
    start: u64,
    /// Sum and number of the losses of each point.
    points: Vec<(f64, u32)>,
    /// Doublings of the steps per point.
    n_doublings: u32,
}

impl Curve {
    pub(super) fn starting(start: u64) -> Self {
        Self { start, ..Self::default() }
    }

    /// Adds the loss of a step.
    pub(super) fn push(&mut self, step: u64, loss: f64) {
        let offset = step.saturating_sub(self.start + 1);
        let mut index = (offset >> self.n_doublings) as usize;
        while index >= POINTS_MAX {
            let merge = |pair: &[(f64, u32)]| {
                pair.iter().fold((0.0, 0), |sum, point| (sum.0 + point.0, sum.1 + point.1))
            };
            self.points = self.points.chunks(2).map(merge).collect();
            self.n_doublings += 1;
            index = (offset >> self.n_doublings) as usize;
        }
        if self.points.len() <= index {
            self.points.resize(index + 1, (0.0, 0));
        }
        if loss.is_finite() {
            self.points[index].0 += loss;
            self.points[index].1 += 1;
        }
    }

    /// Removes the steps after `step`, which the run undid.
    pub(super) fn truncate(&mut self, step: u64) {
        let n = step.saturating_sub(self.start) >> self.n_doublings;
        self.points.truncate(n as usize);
    }

    /// The means at equal distances, `None` where there is none.
    fn columns(&self, n: usize) -> Vec<Option<f64>> {
        let n_points = self.points.len();
        let column = |c: usize| {
            let (low, high) =
                (c * n_points / n, ((c + 1) * n_points / n).max(c * n_points / n + 1));
            let part = self.points.get(low..high.min(n_points))?;
            let (sum, count) = part.iter().fold((0.0, 0), |s, p| (s.0 + p.0, s.1 + p.1));
            (count > 0).then(|| sum / f64::from(count))
        };
        (0..n).map(column).collect()
    }

    /// Number of steps that the curve covers.
    fn n_steps(&self) -> u64 {
        (self.points.len() as u64) << self.n_doublings
    }
}

/// Draws a curve and the marks of evaluations into lines of `width` characters.
pub(super) fn draw(
    curve: &Curve,
    marks: &[(u64, f64)],
    width: usize,
    height: usize,
) -> Vec<String> {
    let n_cells = width.saturating_sub(AXIS).max(1);
    let columns = curve.columns(2 * n_cells);
    let marks = || marks.iter().filter(|(step, loss)| *step > curve.start && loss.is_finite());
    let values = || columns.iter().flatten().copied().chain(marks().map(|mark| mark.1));
    let (mut low, mut high) = values().fold((f64::MAX, f64::MIN), |r, v| (r.0.min(v), r.1.max(v)));
    if low > high {
        (low, high) = (0.0, 1.0);
    }
    if high - low < 1e-6 {
        (low, high) = (low - 0.5, high + 0.5);
    }
    let n_rows = 4 * height;
    // Row 0 is at the top.
    let row = |value: f64| ((high - value) / (high - low) * (n_rows - 1) as f64).round() as usize;
    let mut cells = vec![vec![0u8; n_cells]; height];
    let mut last = None;
    for (x, value) in columns.iter().enumerate() {
        let Some(value) = value else { continue };
        let y = row(*value);
        // A steep curve has no gaps.
        let from: usize = last.unwrap_or(y);
        let (top, bottom) = match from.cmp(&y) {
            std::cmp::Ordering::Less => (from + 1, y),
            std::cmp::Ordering::Equal => (y, y),
            std::cmp::Ordering::Greater => (y, from - 1),
        };
        for y in top..=bottom {
            cells[y / 4][x / 2] |= dot(x % 2, y % 4);
        }
        last = Some(y);
    }
    let mut lines: Vec<Vec<char>> =
        cells.iter().map(|row| row.iter().map(|bits| braille(*bits)).collect()).collect();
    for (step, loss) in marks() {
        let share = (step - curve.start) as f64 / curve.n_steps().max(1) as f64;
        let x = ((share * n_cells as f64) as usize).min(n_cells - 1);
        lines[row(*loss) / 4][x] = MARK;
    }
    let label = |index: usize| match index {
        0 => format!("{high:>6.3}"),
        i if i + 1 == height => format!("{low:>6.3}"),
        _ => " ".repeat(6),
    };
    let line = |(index, line): (usize, &Vec<char>)| {
        let line: String = line.iter().collect();
        format!("{} │{}", label(index), line.trim_end())
    };
    lines.iter().enumerate().map(line).collect()
}

/// The bit of a dot in a braille character.
fn dot(x: usize, y: usize) -> u8 {
    const DOTS: [[u8; 4]; 2] = [[0x01, 0x02, 0x04, 0x40], [0x08, 0x10, 0x20, 0x80]];
    DOTS[x][y]
}

fn braille(bits: u8) -> char {
    match bits {
        0 => ' ',
        bits => char::from_u32(0x2800 + u32::from(bits)).unwrap_or(' '),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_falling_curve_falls_from_corner_to_corner() {
        let mut curve = Curve::starting(0);
        for step in 1..=40 {
            curve.push(step, 10.0 - step as f64 * 0.2);
        }
        let lines = draw(&curve, &[(40, 2.0), (20, 8.0)], AXIS + 10, 4);
        // The evaluation of step 20 is above the curve, and that of step 40 on it.
        let want = [" 9.700 │⠑⠤⡀  o", "       │  ⠈⠒⢄", "       │     ⠑⠢⡀", " 2.000 │       ⠈⠑o"];
        assert_eq!(lines, want);
    }

    #[test]
    fn a_long_curve_keeps_its_shape_and_its_size() {
        let mut curve = Curve::starting(100);
        for step in 101..=1_000_100u64 {
            curve.push(step, if step <= 500_100 { 4.0 } else { 2.0 });
        }
        assert!(curve.points.len() <= POINTS_MAX);
        assert!((1_000_000..1_100_000).contains(&curve.n_steps()), "{}", curve.n_steps());
        let columns = curve.columns(20);
        assert_eq!((columns[0], columns[19]), (Some(4.0), Some(2.0)));
        curve.truncate(500_100);
        assert!(curve.columns(20).iter().all(|loss| *loss == Some(4.0)));
    }

    #[test]
    fn what_cannot_be_drawn_is_left_out() {
        let mut curve = Curve::starting(0);
        let empty = draw(&curve, &[], 30, 3);
        assert_eq!(empty, [" 1.000 │", "       │", " 0.000 │"]);
        for (step, loss) in [(1, f64::NAN), (2, f64::INFINITY), (3, 3.0), (4, 3.0)] {
            curve.push(step, loss);
        }
        let lines = draw(&curve, &[(2, f64::NAN)], 30, 3);
        assert!(lines[0].starts_with(" 3.500 │") && lines[2].starts_with(" 2.500 │"), "{lines:?}");
        assert!(lines[1].contains('⠤') || lines[1].contains('⠒'), "{lines:?}");
    }
}
