//! Curves as inline SVG.

use std::fmt::Write as _;

use super::Curve;
use super::axis::{Axis, is_drawable, short_number};
use super::escape::{escape, lang_attribute};

/// Size of the picture and of the margins around the plot, in SVG units.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 380.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 52.0;
/// Left of the plot: the axis label, the gap to the ticks, and so much for each of their
/// characters.
const LEFT_EMPTY: f64 = 36.0;
const CHARACTER: f64 = 7.2;
/// Colours in the style sheet; further curves repeat them with dashes.
const N_COLOURS: usize = 8;
const DASHES: [&str; 4] = ["", "7 4", "2 3", "9 3 2 3"];
/// Curves with more points are thinned out, because the picture has no room for more.
const MAX_POINTS: usize = 2_000;
/// Columns that keep their extremes when a curve is thinned out.
const N_COLUMNS: usize = 400;

/// The picture, its legend, and a note on points that could not be drawn.
pub(super) fn render(
    caption: &str,
    x_label: &str,
    y_label: &str,
    curves: &[Curve],
    log_y: bool,
) -> String {
    let drawable = || curves.iter().flat_map(|c| &c.points).filter(|p| is_point(p, log_y));
    let x = Axis::new(drawable().map(|p| p.0), false, 6);
    let y = Axis::new(drawable().map(|p| p.1), log_y, 5).with_margin(0.04, 5);
    let frame = Frame::new(x, y);
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">\n",
        escape(if caption.is_empty() { y_label } else { caption }),
    );
    frame.draw_axes(&mut svg, x_label, y_label);
    for (i, curve) in curves.iter().enumerate() {
        frame.draw_curve(&mut svg, i, curve);
    }
    svg.push_str("</svg>\n");
    svg.push_str(&legend(curves, log_y));
    let n_points: usize = curves.iter().map(|c| c.points.len()).sum();
    svg.push_str(&note(n_points, n_points - drawable().count(), log_y));
    svg
}

fn is_point(point: &(f64, f64), log_y: bool) -> bool {
    is_drawable(point.0, false) && is_drawable(point.1, log_y)
}

/// Two axes and the place of the plot between them.
struct Frame {
    x: Axis,
    y: Axis,
    left: f64,
}

impl Frame {
    fn new(x: Axis, y: Axis) -> Self {
        let lengths = y.ticks.iter().map(|t| y.label(*t).chars().count());
        let left = LEFT_EMPTY + CHARACTER * lengths.max().unwrap_or(0).max(3) as f64;
        Self { x, y, left }
    }

    fn px(&self, x: f64) -> f64 {
        self.left + self.x.place(x) * (WIDTH - self.left - RIGHT)
    }

    fn py(&self, y: f64) -> f64 {
        HEIGHT - BOTTOM - self.y.place(y) * (HEIGHT - TOP - BOTTOM)
    }

    fn draw_axes(&self, svg: &mut String, x_label: &str, y_label: &str) {
        let (left, right, bottom) = (self.left, WIDTH - RIGHT, HEIGHT - BOTTOM);
        for &tick in &self.y.ticks {
            let (py, label) = (self.py(tick), self.y.label(tick));
            push(
                svg,
                format_args!(
                    "<path class=\"grid\" d=\"M{left:.1} {py:.1}H{right}\"/><text x=\"{:.1}\" \
                 y=\"{:.1}\" text-anchor=\"end\">{label}</text>\n",
                    left - 8.0,
                    py + 4.0,
                ),
            );
        }
        for &tick in &self.x.ticks {
            let (px, label) = (self.px(tick), self.x.label(tick));
            push(
                svg,
                format_args!(
                    "<path class=\"axis\" d=\"M{px:.1} {bottom}v5\"/><text x=\"{px:.1}\" \
                 y=\"{:.1}\" text-anchor=\"middle\">{label}</text>\n",
                    bottom + 20.0,
                ),
            );
        }
        let (x_middle, y_middle) = ((left + right) / 2.0, (TOP + bottom) / 2.0);
        push(
            svg,
            format_args!(
                "<path class=\"axis\" d=\"M{left:.1} {bottom}H{right}\"/>\n\
             <text class=\"label\" x=\"{x_middle:.1}\" y=\"{:.1}\" \
             text-anchor=\"middle\"{}>{}</text>\n\
             <text class=\"label\" transform=\"translate(14 {y_middle}) rotate(-90)\" \
             text-anchor=\"middle\"{}>{}</text>\n",
                HEIGHT - 8.0,
                lang_attribute(x_label),
                escape(x_label),
                lang_attribute(y_label),
                escape(y_label),
            ),
        );
    }

    /// One path for the lines, and a dot for each point that has no neighbour to be joined with.
    fn draw_curve(&self, svg: &mut String, i: usize, curve: &Curve) {
        let mut path = String::new();
        let mut dots = String::new();
        for run in curve.points.split(|p| !is_point(p, self.y.is_log)) {
            match thin_out(run).as_slice() {
                [] => {}
                [(x, y)] => push(
                    &mut dots,
                    format_args!(
                        "<circle class=\"dot c{}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.5\"/>\n",
                        i % N_COLOURS,
                        self.px(*x),
                        self.py(*y),
                    ),
                ),
                points => {
                    for (j, (x, y)) in points.iter().enumerate() {
                        let command = if j == 0 { 'M' } else { 'L' };
                        let (px, py) = (self.px(*x), self.py(*y));
                        push(&mut path, format_args!("{command}{px:.1} {py:.1}"));
                    }
                }
            }
        }
        if !path.is_empty() {
            push(
                svg,
                format_args!(
                    "<path class=\"line c{}\"{} d=\"{path}\"><title>{}</title></path>\n",
                    i % N_COLOURS,
                    dashes(i),
                    escape(&curve.name),
                ),
            );
        }
        svg.push_str(&dots);
    }
}

/// Selects the points that shape the curve: the first, smallest, greatest and last of each of
/// [`N_COLUMNS`] equal groups, in order.
fn thin_out(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= MAX_POINTS {
        return points.to_vec();
    }
    let mut kept = Vec::with_capacity(4 * N_COLUMNS);
    for group in points.chunks(points.len().div_ceil(N_COLUMNS)) {
        let by_y = |a: &usize, b: &usize| group[*a].1.total_cmp(&group[*b].1);
        let least = (0..group.len()).min_by(by_y).unwrap_or(0);
        let greatest = (0..group.len()).max_by(by_y).unwrap_or(0);
        let mut chosen = [0, least, greatest, group.len() - 1];
        chosen.sort_unstable();
        let mut last = None;
        for i in chosen {
            if last != Some(i) {
                kept.push(group[i]);
            }
            last = Some(i);
        }
    }
    kept
}

/// The names of the curves with their last values.
fn legend(curves: &[Curve], log_y: bool) -> String {
    let mut html = String::from("<ul class=\"legend\">");
    for (i, curve) in curves.iter().enumerate() {
        let last = curve.points.iter().rev().find(|p| is_point(p, log_y));
        let last = last.map(|p| short_number(p.1));
        push(
            &mut html,
            format_args!(
                "<li><svg viewBox=\"0 0 28 10\" aria-hidden=\"true\"><path class=\"line c{}\"{} \
             d=\"M1 5H27\"/></svg><span{}>{}</span> <span class=\"last\">{}</span></li>",
                i % N_COLOURS,
                dashes(i),
                lang_attribute(&curve.name),
                escape(&curve.name),
                last.as_deref().unwrap_or("no points"),
            ),
        );
    }
    html.push_str("</ul>\n");
    html
}

fn dashes(i: usize) -> String {
    match DASHES[i / N_COLOURS % DASHES.len()] {
        "" => String::new(),
        dashes => format!(" stroke-dasharray=\"{dashes}\""),
    }
}

/// Describes what is missing in the picture.
fn note(n_points: usize, n_missing: usize, log_y: bool) -> String {
    if n_missing == 0 {
        return String::new();
    }
    let why = if log_y { "not finite or not positive" } else { "not finite" };
    format!("<p class=\"note\">{n_missing} of {n_points} points are {why} and not drawn.</p>\n")
}

fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("writing to a string cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(points: &[(f64, f64)]) -> Curve {
        Curve { name: "run".to_owned(), points: points.to_vec() }
    }

    fn plot(curves: &[Curve], log_y: bool) -> String {
        let html = render("Loss", "step", "loss", curves, log_y);
        assert!(!html.contains("NaN") && !html.contains("inf"), "{html}");
        html
    }

    /// All coordinates of `M` and `L` commands of curves.
    fn coordinates(html: &str) -> Vec<(f64, f64)> {
        let paths = html.split("class=\"line c").skip(1).filter_map(|p| p.split(" d=\"").nth(1));
        let paths = paths.map(|p| p.split('"').next().unwrap()).filter(|p| !p.contains('H'));
        let pairs = paths.flat_map(|p| p.split(['M', 'L']).filter(|pair| !pair.is_empty()));
        pairs
            .map(|pair| {
                let (x, y) = pair.split_once(' ').unwrap();
                (x.parse().unwrap(), y.parse().unwrap())
            })
            .collect()
    }

    #[test]
    fn the_ends_of_a_curve_are_at_the_ends_of_the_plot() {
        let found = coordinates(&plot(&[curve(&[(0.0, 0.0), (50.0, 3.0), (100.0, 4.0)])], false));
        assert_eq!(found.len(), 3);
        assert_eq!(found[0].1, HEIGHT - BOTTOM);
        assert!(found[0].0 > LEFT_EMPTY && found[0].0 < 80.0);
        assert_eq!(found[2].0, WIDTH - RIGHT);
        assert!(found[2].1 > TOP && found[2].1 < TOP + 20.0);
    }

    #[test]
    fn all_coordinates_are_inside_the_plot() {
        let wave: Vec<_> =
            (0..5_000).map(|i| (f64::from(i), (f64::from(i) * 0.1).sin() + 1.5)).collect();
        for log_y in [false, true] {
            let found = coordinates(&plot(&[curve(&wave)], log_y));
            assert!(found.len() > N_COLUMNS && found.len() <= 4 * N_COLUMNS);
            for (x, y) in found {
                assert!(
                    (LEFT_EMPTY..=WIDTH - RIGHT).contains(&x)
                        && (TOP..=HEIGHT - BOTTOM).contains(&y)
                );
            }
        }
    }

    #[test]
    fn no_curves_and_empty_curves_give_empty_axes() {
        assert!(plot(&[], false).contains("class=\"axis\""));
        let html = plot(&[curve(&[])], true);
        assert!(html.contains("no points") && coordinates(&html).is_empty());
    }

    #[test]
    fn one_point_is_a_dot() {
        for point in [(5.0, 2.5), (0.0, 0.0), (-1.0, -7.0)] {
            let html = plot(&[curve(&[point])], false);
            assert_eq!(html.matches("<circle").count(), 1, "{html}");
            assert!(!html.contains("class=\"note\""));
        }
    }

    #[test]
    fn values_that_are_not_numbers_leave_a_gap_and_a_note() {
        let points = [
            (0.0, 3.0),
            (1.0, 2.0),
            (2.0, f64::NAN),
            (3.0, 1.5),
            (4.0, 1.0),
            (5.0, f64::INFINITY),
            (f64::NAN, 1.0),
            (6.0, 1.2),
        ];
        let html = plot(&[curve(&points)], false);
        assert_eq!(coordinates(&html).len(), 4);
        assert_eq!(html.matches("<circle").count(), 1);
        assert!(html.contains("3 of 8 points are not finite and not drawn."));
        assert!(plot(&[curve(&[(0.0, f64::NAN)])], true).contains("1 of 1 points"));
    }

    #[test]
    fn a_logarithmic_axis_leaves_out_what_is_not_positive() {
        let html =
            plot(&[curve(&[(0.0, 10.0), (1.0, 0.0), (2.0, -1.0), (3.0, 0.1), (4.0, 0.01)])], true);
        assert_eq!(coordinates(&html).len(), 2);
        assert!(html.contains("2 of 5 points are not finite or not positive"));
    }

    #[test]
    fn a_spike_survives_thinning_out() {
        let mut points: Vec<_> = (0..100_000).map(|i| (f64::from(i), 1.0)).collect();
        points[54_321].1 = 9.0;
        let kept = thin_out(&points);
        assert!(kept.len() <= 4 * N_COLUMNS && kept.contains(&(54_321.0, 9.0)));
        assert!(kept.is_sorted_by(|a, b| a.0 < b.0));
        assert_eq!((kept[0].0, kept[kept.len() - 1].0), (0.0, 99_999.0));
    }

    #[test]
    fn names_are_escaped_and_the_ninth_curve_is_dashed() {
        let curves =
            vec![Curve { name: "<b>".to_owned(), points: vec![(0.0, 1.0), (1.0, 2.0)] }; 9];
        let html = plot(&curves, false);
        assert!(html.contains("&lt;b&gt;") && !html.contains("<b>"));
        assert_eq!(html.matches("stroke-dasharray=\"7 4\"").count(), 2);
    }
}
