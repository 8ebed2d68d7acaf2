//! Final output: a table, `report.html`, and next steps.

use anyhow::{Context, Result};
use lehr_eval::metrics::{Estimate, mean_interval, paired_difference};
use lehr_eval::report::{Curve, Report};
use lehr_model::io::write_file;
use lehr_train::{RunDir, read_metrics};
use serde_json::{Value, json};

use super::plan::{FEW, SEEDS};
use super::results::Results;
use super::{Quickstart, corpus::LANGUAGES};

/// Prints and writes the results.
pub(super) fn finish(quickstart: &mut Quickstart, seconds: f64) -> Result<()> {
    // An interrupted quickstart adds up its parts.
    let before = quickstart.results.get("seconds").unwrap_or(0.0);
    quickstart.results.put("seconds", before + seconds)?;
    let rows = table(&quickstart.results)?;
    write_html(quickstart, &rows)?;
    if quickstart.json {
        println!("{}", json!({ "results": quickstart.results.all() }));
        return Ok(());
    }
    println!("\n== 4. what came out (test sets; mean of {} seeds ± 95% interval)", SEEDS.len());
    print_table(&rows);
    let out = quickstart.out.display();
    let bits = quickstart.results.get("pretrain/bits_per_byte").unwrap_or(f64::NAN);
    println!(
        "\npre-training reached {bits:.3} bits per byte of held-out text; {seconds:.0} s in all"
    );
    println!("curves, table and samples: {out}/report.html\n");
    println!("next:");
    println!("  lehr chat {out}/chat");
    println!("  lehr classify {out}/sentiment -t \"what a wonderful film\"");
    println!("  lehr generate {out}/base -p \"It was\"");
    println!("  lehr pretrain --data my.txt                          your own text");
    println!("  lehr finetune --model {out}/base --data my.jsonl     your own dialogues or labels");
    Ok(())
}

const HEADER: [&str; 6] =
    ["task", "majority", "bag of words", "from scratch", "pre-trained", "pre-training adds"];

/// One line per task: the baselines, both starts, and what pre-training adds, paired by seed.
fn table(results: &Results) -> Result<Vec<[String; 6]>> {
    let mut rows = Vec::new();
    for language in LANGUAGES {
        for (labels, title) in [("few", format!("{FEW} labels")), ("all", "all labels".to_owned())]
        {
            let key = |name: &str| format!("sentiment/{language}/{labels}/{name}");
            let percent = |v: Vec<f64>| v.into_iter().map(|v| 100.0 * v).collect::<Vec<_>>();
            let start = |name: &str| percent(results.seeds(&key(name)));
            let (scratch, pretrained) = (start("scratch"), start("pretrained"));
            let words = match results.get(&key("bag_of_words")) {
                Some(one) => format!("{:.1}", 100.0 * one),
                None => format!("{:.1}", mean_interval(&start("bag_of_words"))?),
            };
            let majority = results.get(&format!("sentiment/{language}/majority"));
            rows.push([
                format!("sentiment {language}, {title}: accuracy %"),
                format!("{:.1}", 100.0 * majority.unwrap_or(f64::NAN)),
                words,
                format!("{:.1}", mean_interval(&scratch)?),
                format!("{:.1}", mean_interval(&pretrained)?),
                signed(&paired_difference(&pretrained, &scratch)?, 1),
            ]);
        }
    }
    let bits = |name: &str| results.seeds(&format!("dialogue/bits_per_byte/{name}"));
    let (scratch, pretrained) = (bits("scratch"), bits("pretrained"));
    rows.push([
        "dialogue: bits per byte (less is better)".to_owned(),
        String::new(),
        String::new(),
        format!("{:.3}", mean_interval(&scratch)?),
        format!("{:.3}", mean_interval(&pretrained)?),
        signed(&paired_difference(&pretrained, &scratch)?, 3),
    ]);
    // The number of seeds is in the heading.
    let short = |cell: String| cell.replace(&format!(" (n = {})", SEEDS.len()), "");
    Ok(rows.into_iter().map(|row| row.map(short)).collect())
}

/// A difference with its sign.
fn signed(difference: &Estimate, digits: usize) -> String {
    let plus = if difference.mean > 0.0 { "+" } else { "" };
    format!("{plus}{difference:.digits$}")
}

fn print_table(rows: &[[String; 6]]) {
    let cells = || rows.iter().map(|r| r.each_ref().map(String::as_str)).chain([HEADER]);
    let width = |c: usize| cells().map(|r| r[c].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..HEADER.len()).map(width).collect();
    let line = |row: [&str; 6]| {
        let pad = |(c, cell): (usize, &&str)| format!("{cell:w$}", w = widths[c]);
        println!("{}", row.iter().enumerate().map(pad).collect::<Vec<_>>().join("  ").trim_end());
    };
    line(HEADER);
    rows.iter().for_each(|row| line(row.each_ref().map(String::as_str)));
}

fn write_html(quickstart: &Quickstart, rows: &[[String; 6]]) -> Result<()> {
    let mut report = Report::new("lehr quickstart");
    report.paragraph(&quickstart.plan.to_string());
    report.table(
        &format!("Test sets; mean of {} seeds with 95% intervals", SEEDS.len()),
        &HEADER,
        &rows.iter().map(|row| row.to_vec()).collect::<Vec<_>>(),
    );
    report.section("Pre-training");
    let dir = quickstart.dir("base");
    let run = RunDir::open(&RunDir::load_recipe(&dir)?)?;
    let metrics = read_metrics(&run.metrics())?;
    let points = |value: &dyn Fn(&lehr_train::Metrics) -> Option<f64>| {
        metrics.iter().filter_map(|m| Some((m.step as f64, value(m)?))).collect()
    };
    let training = Curve { name: "training".into(), points: points(&|m| Some(m.loss)) };
    let held_out =
        Curve { name: "held out".into(), points: points(&|m| Some(m.eval.as_ref()?.loss)) };
    report.curves("Loss", "step", "nats per token", &[training, held_out], false);
    let bits =
        Curve { name: "held out".into(), points: points(&|m| m.eval.as_ref()?.bits_per_byte) };
    report.curves("Bits per byte", "step", "bits", &[bits], false);
    for (title, name) in [("Continuations", "base"), ("Answers", "chat")] {
        let samples = samples(quickstart, name)?;
        if !samples.is_empty() {
            report.samples(title, &samples);
        }
    }
    let path = quickstart.dir("report.html");
    write_file(&path, report.render().as_bytes())?;
    Ok(())
}

/// Returns the samples of a run, title and text.
fn samples(quickstart: &Quickstart, name: &str) -> Result<Vec<(String, String)>> {
    let path = quickstart.dir(name).join("samples.jsonl");
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("reading the samples {}", path.display()))?;
    let sample = |line: &str| {
        let json: Value = serde_json::from_str(line).ok()?;
        let text = |key: &str| json.get(key).and_then(Value::as_str).map(str::to_owned);
        Some((format!("step {}: {}", json.get("step")?, text("prompt")?), text("text")?))
    };
    Ok(text.lines().filter_map(sample).collect())
}
