use super::*;

/// Written by TensorBoard's own writer (`tools/golden/tensorboard_events.py`).
const GOLDEN: &[u8] = include_bytes!("../../tests/golden/events.out.tfevents.golden");

#[test]
fn events_are_byte_for_byte_those_of_the_official_writer() {
    let recipe = Value::text("recipe", &as_markdown("seed = 1"));
    let losses = vec![Value::scalar("train/loss", 8.3125), Value::scalar("validation/loss", 0.0)];
    let sample = Value::text("sample/玻璃", &as_markdown(&"glass ".repeat(30)));
    let events = [
        encode(1_700_000_000.25, 0, &Content::Version("brain.Event:2")),
        encode(1_700_000_000.5, 0, &Content::Summary(vec![recipe])),
        encode(1_700_000_001.0, 1, &Content::Summary(losses)),
        encode(1_700_000_002.125, 300, &Content::Summary(vec![sample])),
        encode(1_700_000_003.0, 1 << 40, &Content::Start),
    ];
    assert!(events.concat() == GOLDEN);
    let steps: Vec<_> = records(GOLDEN).iter().map(|record| step_of(record.data)).collect();
    assert_eq!(steps, [0, 0, 1, 300, 1 << 40].map(Some));
}

/// The steps of all events, file by file.
fn steps(files: &EventFiles) -> Vec<Vec<u64>> {
    let of = |path: &PathBuf| -> Vec<u64> {
        let bytes = std::fs::read(path).unwrap();
        records(&bytes).iter().map(|record| step_of(record.data).unwrap()).collect()
    };
    files.paths().unwrap().iter().map(of).collect()
}

fn write(files: &mut EventFiles, steps: std::ops::RangeInclusive<u64>) {
    for step in steps {
        files.write(step, &Content::Summary(vec![Value::scalar("x", 1.0)])).unwrap();
    }
}

#[test]
fn a_continued_run_has_each_step_once() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("tensorboard");
    let mut files = EventFiles::open(&dir, 0, "a = 1\n").unwrap();
    assert!(!dir.exists(), "nothing is written before the first event");
    write(&mut files, 1..=5);
    assert_eq!(steps(&files), [[0, 0, 1, 2, 3, 4, 5]]);
    // A crash cuts the last event.
    let path = files.paths().unwrap().remove(0);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 3]).unwrap();
    let mut files = EventFiles::open(&dir, 3, "a = 1\n").unwrap();
    assert_eq!(steps(&files), [[0, 0, 1, 2, 3]]);
    write(&mut files, 4..=6);
    // The new file has its version, and the step from which readers drop older events.
    assert_eq!(steps(&files), [vec![0, 0, 1, 2, 3], vec![0, 4, 4, 5, 6]]);
    files.go_back(4).unwrap();
    write(&mut files, 5..=5);
    assert_eq!(steps(&files), [vec![0, 0, 1, 2, 3], vec![0, 4, 4], vec![0, 5, 5]]);
    // A run that begins anew has nothing of the old one.
    let mut files = EventFiles::open(&dir, 0, "a = 1\n").unwrap();
    write(&mut files, 1..=1);
    assert_eq!(steps(&files), [[0, 0, 1]]);
}
