//! A report as one HTML file: text, tables, curves and samples, in the order they are added.
//!
//! The file is self-contained: it includes its style, draws curves as inline SVG, has no scripts
//! and loads nothing. It follows the reader's light or dark mode and prints well. All text is
//! escaped, so a sample may hold HTML or control characters.
//!
//! ```
//! use lehr_eval::report::{Curve, Report};
//!
//! let mut report = Report::new("First run");
//! report.paragraph("Loss in nats per token.");
//! let curve = Curve { name: "train".to_owned(), points: vec![(0.0, 8.3), (100.0, 5.1)] };
//! report.curves("Training loss", "step", "loss", &[curve], false);
//! assert!(report.render().starts_with("<!doctype html>"));
//! ```

mod axis;
mod escape;
mod plot;

use std::fmt::Write as _;

use escape::{escape, lang_attribute};

/// A line of a plot.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    /// Its name in the legend.
    pub name: String,
    /// Points `(x, y)` in the order they are joined. A point that is not finite, or not positive on
    /// a logarithmic axis, leaves a gap.
    pub points: Vec<(f64, f64)>,
}

/// A part of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marked {
    /// The part.
    pub text: String,
    /// Whether it is marked.
    pub is_marked: bool,
}

/// A report under construction. Methods add to its end and can be chained.
#[derive(Clone, Debug)]
pub struct Report {
    title: String,
    body: String,
}

impl Report {
    /// An empty report.
    #[must_use]
    pub fn new(title: &str) -> Self {
        Self { title: title.to_owned(), body: String::new() }
    }

    /// Starts a section.
    pub fn section(&mut self, title: &str) -> &mut Self {
        let lang = lang_attribute(title);
        self.push(format_args!("<h2{lang}>{}</h2>\n", escape(title)))
    }

    /// Adds a paragraph of plain text. Empty lines inside separate paragraphs.
    pub fn paragraph(&mut self, text: &str) -> &mut Self {
        for part in text.split("\n\n").map(str::trim).filter(|part| !part.is_empty()) {
            self.push(format_args!("<p{}>{}</p>\n", lang_attribute(part), escape(part)));
        }
        self
    }

    /// Adds text in a fixed-width font, with its line breaks and spaces.
    pub fn code(&mut self, text: &str) -> &mut Self {
        self.push(format_args!("<pre><code>{}</code></pre>\n", escape(text)))
    }

    /// Adds a table. Columns that hold numbers are aligned to the right; missing cells are empty.
    pub fn table<H: AsRef<str>, C: AsRef<str>>(
        &mut self,
        caption: &str,
        header: &[H],
        rows: &[Vec<C>],
    ) -> &mut Self {
        let n_columns = rows.iter().map(Vec::len).chain([header.len()]).max().unwrap_or(0);
        let is_number: Vec<bool> = (0..n_columns).map(|c| is_number_column(rows, c)).collect();
        self.push(format_args!("<figure class=\"table\">{}<table>\n", figcaption(caption)));
        if !header.is_empty() {
            let row = cells("th", header, &is_number);
            self.push(format_args!("<thead><tr>{row}</tr></thead>\n"));
        }
        self.body.push_str("<tbody>\n");
        for row in rows {
            self.push(format_args!("<tr>{}</tr>\n", cells("td", row, &is_number)));
        }
        self.body.push_str("</tbody></table></figure>\n");
        self
    }

    /// Adds a plot of curves. Below it are their names and last values.
    ///
    /// On a logarithmic y axis (`log_y`) only positive values can be drawn. A note counts the
    /// points that cannot be drawn, so a diverged run does not look like a finished one.
    pub fn curves(
        &mut self,
        caption: &str,
        x_label: &str,
        y_label: &str,
        curves: &[Curve],
        log_y: bool,
    ) -> &mut Self {
        let plot = plot::render(caption, x_label, y_label, curves, log_y);
        self.push(format_args!("<figure>{}{plot}</figure>\n", figcaption(caption)))
    }

    /// Adds texts under titles, such as prompts and a model's answers. Line breaks are kept.
    pub fn samples<T: AsRef<str>, S: AsRef<str>>(
        &mut self,
        caption: &str,
        samples: &[(T, S)],
    ) -> &mut Self {
        self.push(format_args!("<figure>{}<dl>\n", figcaption(caption)));
        for (title, text) in samples {
            let (title, text) = (title.as_ref(), text.as_ref());
            self.push(format_args!(
                "<dt dir=\"auto\"{}>{}</dt>\n<dd dir=\"auto\"{}>{}</dd>\n",
                lang_attribute(title),
                escape(title),
                lang_attribute(text),
                escape(text),
            ));
        }
        self.body.push_str("</dl></figure>\n");
        self
    }

    /// Adds texts with marked parts. Line breaks are kept.
    pub fn marked(&mut self, caption: &str, texts: &[Vec<Marked>]) -> &mut Self {
        self.push(format_args!("<figure>{}<dl>\n", figcaption(caption)));
        for parts in texts {
            self.body.push_str("<dd dir=\"auto\">");
            for Marked { text, is_marked } in parts {
                let text = escape(text);
                match is_marked {
                    true => self.push(format_args!("<mark>{text}</mark>")),
                    false => self.push(format_args!("{text}")),
                };
            }
            self.body.push_str("</dd>\n");
        }
        self.body.push_str("</dl></figure>\n");
        self
    }

    /// The whole file, in UTF-8.
    #[must_use]
    pub fn render(&self) -> String {
        let title = escape(&self.title);
        let lang = lang_attribute(&self.title);
        let style = include_str!("style.css");
        let body = &self.body;
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n\
             <style>\n{style}</style>\n</head>\n<body>\n<main>\n<h1{lang}>{title}</h1>\n\
             {body}</main>\n</body>\n</html>\n"
        )
    }

    fn push(&mut self, text: std::fmt::Arguments<'_>) -> &mut Self {
        self.body.write_fmt(text).expect("writing to a string cannot fail");
        self
    }
}

fn figcaption(caption: &str) -> String {
    if caption.is_empty() {
        return String::new();
    }
    format!("<figcaption{}>{}</figcaption>", lang_attribute(caption), escape(caption))
}

fn cells<C: AsRef<str>>(tag: &str, row: &[C], is_number: &[bool]) -> String {
    let mut html = String::new();
    for (column, is_number) in is_number.iter().enumerate() {
        let text = row.get(column).map_or("", |cell| cell.as_ref());
        let class = if *is_number { " class=\"n\"" } else { "" };
        let lang = lang_attribute(text);
        html.push_str(&format!("<{tag}{class}{lang}>{}</{tag}>", escape(text)));
    }
    html
}

/// Whether every cell of the column is empty or a number, with or without a unit, and one is not
/// empty.
fn is_number_column<C: AsRef<str>>(rows: &[Vec<C>], column: usize) -> bool {
    let mut texts = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.as_ref().trim());
    let is_blank = |text: &str| matches!(text, "" | "-" | "–" | "—" | "NaN" | "inf" | "-inf");
    let is_number = |text: &str| {
        let digits = text.trim_start_matches(['+', '-', '−', '±', '<', '>', '≈', '$', ' ']);
        digits.starts_with(|c: char| c.is_ascii_digit()) && text.chars().count() <= 32
    };
    texts.clone().any(is_number) && texts.all(|text| is_blank(text) || is_number(text))
}
