//! The report as a whole: safe, self-contained, well-formed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use lehr_eval::report::{Curve, Report};

const EVIL: &str = "</dd><script>alert(\"x\")</script> & 'quotes' \0 \u{202e}";

fn full_report(text: &str) -> String {
    let curve =
        Curve { name: text.to_owned(), points: vec![(0.0, 1.0), (1.0, f64::NAN), (2.0, 3.0)] };
    let mut report = Report::new(text);
    report
        .section(text)
        .paragraph(text)
        .table(text, &[text, "n"], &[vec![text, "1"], vec![text], vec!["a", "2", text]])
        .curves(text, text, text, &[curve], true)
        .samples(text, &[(text, text)])
        .code(text);
    report.render()
}

/// The tags of a file in order, without `<` and `>`.
fn tags(html: &str) -> Vec<&str> {
    html.split('<').skip(1).filter_map(|rest| rest.split('>').next()).collect()
}

#[test]
fn text_never_becomes_markup() {
    let (evil, harmless) = (full_report(EVIL), full_report("x"));
    assert!(!evil.contains("<script") && !evil.contains('\0'));
    let names = |html| -> Vec<String> {
        tags(html).iter().map(|t| t.split([' ', '\n']).next().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&evil), names(&harmless));
    assert!(
        evil.contains("&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt; &amp; &#39;quotes&#39; ␀")
    );
}

#[test]
fn every_tag_is_closed_in_order() {
    let html = full_report("混合 text");
    let mut open = Vec::new();
    for tag in tags(&html) {
        let name = tag.trim_start_matches('/').split([' ', '\n']).next().unwrap();
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name));
        } else if !tag.ends_with('/') && !matches!(name, "!doctype" | "meta") {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn nothing_is_loaded_from_anywhere() {
    let html = full_report("x");
    for word in ["http", "src=", "href=", "url(", "@import", "<script", "<link"] {
        assert!(!html.contains(word), "{word}");
    }
}

#[test]
fn chinese_text_is_declared_and_unchanged() {
    let html = full_report("训练损失");
    assert!(html.contains("<meta charset=\"utf-8\">"));
    assert!(html.contains("<h1 lang=\"zh\">训练损失</h1>"));
    assert!(html.contains("<dd dir=\"auto\" lang=\"zh\">训练损失</dd>"));
}

#[test]
fn numbers_are_aligned_and_ragged_rows_are_filled() {
    let mut report = Report::new("t");
    let rows = [vec!["a", "0.85 ± 0.01"], vec!["b", "–"], vec!["c"], vec!["d", "12 %", "extra"]];
    report.table("", &["model", "accuracy"], &rows);
    let html = report.render();
    assert!(!html.contains("<figcaption"));
    assert!(html.contains("<th>model</th><th class=\"n\">accuracy</th><th></th>"));
    assert!(html.contains("<td>c</td><td class=\"n\"></td><td></td>"));
    assert!(html.contains("<td>extra</td>"));
}

#[test]
fn an_empty_report_is_a_page_with_a_title() {
    let mut report = Report::new("Empty");
    report.paragraph("").table::<&str, &str>("", &[], &[]).samples::<&str, &str>("", &[]);
    assert!(report.render().contains("<h1>Empty</h1>"));
}

#[test]
fn empty_lines_separate_paragraphs_and_samples_keep_line_breaks() {
    let mut report = Report::new("t");
    report.paragraph("one\n\ntwo\nlines").samples("s", &[("p", "a\n\nb")]);
    let html = report.render();
    assert!(html.contains("<p>one</p>\n<p>two\nlines</p>"));
    assert!(html.contains(">a\n\nb</dd>"));
}
