//! Pickles that would run programs, fill the memory or overflow the stack if allowed to.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use lehr_model::io::Checkpoint;

/// `torch.FloatStorage` of 4 numbers under the key 0, in memo 9.
const STORAGE: &[u8] =
    b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04NtQ";

/// Returns a file of the format before PyTorch 1.6 whose object is the result of `opcodes`.
fn file(opcodes: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.".to_vec();
    bytes.extend(b"\x80\x02}X\x0d\0\0\0little_endian\x88s.");
    bytes.extend([b"\x80\x02", opcodes, b"."].concat());
    bytes.extend(b"\x80\x02]X\x01\0\0\x000a.");
    bytes.extend(4u64.to_le_bytes());
    bytes.extend([1.0f32, 2.0, 3.0, 4.0].iter().flat_map(|v| v.to_le_bytes()));
    bytes
}

fn open(opcodes: &[u8]) -> Result<Checkpoint, lehr_model::Error> {
    Checkpoint::from_bytes(Path::new("hostile.bin"), &file(opcodes))
}

fn fails(opcodes: &[u8], says: &str) {
    let error = open(opcodes).err().unwrap_or_else(|| panic!("{says}: it was read"));
    assert!(error.to_string().contains(says), "{error}");
    assert!(error.to_string().contains("hostile.bin"), "{error}");
}

/// A tensor of the one storage.
fn tensor(offset: u8, size: &[u8], stride: &[u8]) -> Vec<u8> {
    let head = [b"ctorch._utils\n_rebuild_tensor_v2\n(", STORAGE, &[b'K', offset]].concat();
    [&head, size, stride, b"\x89Nt", b"R"].concat()
}

/// `{"w": value}`.
fn weights(value: &[u8]) -> Vec<u8> {
    [b"}X\x01\0\0\0w", value, b"s"].concat()
}

#[test]
fn the_frame_of_these_tests_is_a_file_that_can_be_read() {
    let checkpoint = open(&weights(&tensor(1, b"K\x03\x85", b"K\x01\x85"))).unwrap();
    assert_eq!(checkpoint.tensor("w", [3].into()).unwrap().data(), [2.0, 3.0, 4.0]);
}

#[test]
fn a_call_of_anything_else_is_named_and_not_made() {
    let dir = tempfile::tempdir().unwrap();
    let proof = dir.path().join("it_ran");
    let command = format!("touch {}", proof.display());
    let text = [b"X", &(command.len() as u32).to_le_bytes()[..], command.as_bytes()].concat();
    let system = [b"cos\nsystem\n", &text[..], b"\x85R"].concat();
    fails(&system, "`os.system`");
    fails(&weights(&system), "`w` is `os.system`");
    let stack_global = [b"X\x02\0\0\0osX\x06\0\0\0system\x93", &text[..], b"\x85R"].concat();
    fails(&weights(&stack_global), "`os.system`");
    fails(&weights(b"cbuiltins\neval\nX\x01\0\0\x001\x85R"), "`builtins.eval`");
    fails(&weights(b"c__builtin__\nexec\n)R"), "`__builtin__.exec`");
    // NEWOBJ, NEWOBJ_EX, BUILD, a global itself, a torch function, and a call of a call.
    fails(&weights(b"csubprocess\nPopen\n)\x81"), "`subprocess.Popen`");
    fails(&weights(b"csubprocess\nPopen\n)}\x92"), "`subprocess.Popen`");
    fails(&weights(b"cevil\nClass\n)\x81}X\x01\0\0\0aK\x01sb"), "`evil.Class`");
    fails(&weights(b"cos\nsystem\n"), "`os.system`");
    fails(&weights(b"ctorch.storage\n_load_from_bytes\nB\0\0\0\0\x85R"), "_load_from_bytes");
    fails(&weights(b"cbuiltins\ngetattr\n)R)R"), "a computed function");
    assert!(!proof.exists());
}

#[test]
fn what_lies_beside_the_weights_does_not_matter_and_is_not_run() {
    let good = tensor(0, b"K\x04\x85", b"K\x01\x85");
    let beside = b"X\x04\0\0\0argscos\nsystem\nX\x04\0\0\0exit\x85R}X\x01\0\0\0aK\x01sb";
    let whole = [&b"}(X\x06\0\0\0module"[..], &weights(&good), beside, b"u"].concat();
    let checkpoint = open(&whole).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["w"]);
}

#[test]
fn opcodes_that_torch_does_not_write_are_refused() {
    fails(b"(ios\nsystem\n", "the opcode INST");
    fails(b"(cos\nsystem\no", "the opcode OBJ");
    fails(b"\x82\x01", "the opcode EXT");
    fails(b"\x83\x01\0", "the opcode EXT");
    fails(b"\x84\x01\0\0\0", "the opcode EXT");
    fails(b"P1\n", "the opcode PERSID");
    fails(b"\x97", "the opcode BUFFER");
    fails(b"\xFE", "0xfe is not an opcode");
}

#[test]
fn broken_programs_are_errors() {
    fails(b"", "the stack is empty");
    fails(b"0", "the stack has no mark");
    fails(b"t", "the stack has no mark");
    fails(b"(R", "the stack is empty");
    fails(b"NR", "the stack is empty");
    fails(b"N(a", "the stack is empty");
    fails(b"K\x01K\x02a", "a value that is not a list");
    fails(b"K\x01K\x02K\x03s", "a value that is not a dict");
    fails(b"}(K\x01u", "a key has no value");
    fails(b"h\x07", "value 7 is used before it is stored");
    fails(b"j\xff\xff\xff\xff", "is used before it is stored");
    fails(b"X\x02\0\0\0\xff\xff", "not UTF-8");
    fails(b"K\x01K\x02\x93", "the name of a global is not a string");
    fails(b"N", "it holds no dict");
    fails(b"}", "it holds no tensors");
}

#[test]
fn lengths_beyond_the_file_are_errors_before_memory_is_taken() {
    for opcodes in [
        &b"X\xff\xff\xff\xff"[..],
        b"B\xff\xff\xff\xff",
        b"T\xff\xff\xff\xff",
        b"\x8b\xff\xff\xff\xff",
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\x96\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"cos",
    ] {
        fails(opcodes, "it ends after");
    }
}

#[test]
fn tensors_beyond_their_storage_are_errors() {
    let says = "exceed its storage of 16 bytes";
    let huge = b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f";
    let pair = |a: &[u8], b: &[u8]| [a, b, b"\x86"].concat();
    for (offset, size, stride) in [
        (0, b"K\x05\x85".to_vec(), b"K\x01\x85".to_vec()),
        (1, b"K\x04\x85".to_vec(), b"K\x01\x85".to_vec()),
        (4, b")".to_vec(), b")".to_vec()),
        (0, b"K\x02\x85".to_vec(), b"K\x04\x85".to_vec()),
        // Repeated rows, products and sums that overflow, none among huge ones.
        (0, b"K\x05\x85".to_vec(), b"K\x00\x85".to_vec()),
        (0, pair(huge, huge), pair(b"K\x00", b"K\x00")),
        (0, pair(huge, b"K\x02"), pair(huge, huge)),
        (0, [huge, huge, b"K\x00\x87".as_slice()].concat(), b"K\x01K\x01K\x01\x87".to_vec()),
    ] {
        fails(&weights(&tensor(offset, &size, &stride)), says);
    }
    fails(&weights(&tensor(0, b"J\xff\xff\xff\xff\x85", b"K\x01\x85")), "is not a count");
    fails(&weights(&tensor(0, b"K\x01\x85", b")")), "has 0 strides");
    fails(&weights(b"ctorch._utils\n_rebuild_tensor_v2\n(NK\0))\x89NtR"), "has no storage");
    let class = STORAGE.to_vec();
    let at = class.windows(5).position(|w| w == b"Float").unwrap();
    let class = [&class[..at], b"Weird", &class[at + 5..]].concat();
    let other = [b"ctorch._utils\n_rebuild_tensor_v2\n(", &class[..], b"K\0))\x89NtR"].concat();
    fails(&weights(&other), "torch.WeirdStorage");
}

#[test]
fn deep_nesting_neither_ends_the_stack_nor_is_followed() {
    const DEPTH: usize = 1_000_000;
    // Lists and tuples, from inside and from outside.
    let tuples = [b"K\x01".to_vec(), vec![0x85; DEPTH]].concat();
    fails(&tuples, "it holds no dict");
    fails(&weights(&tuples), "it holds no tensors");
    fails(&[vec![b']'; DEPTH], vec![b'a'; DEPTH - 1]].concat(), "it holds no dict");
    let dicts = [b"}K\x01".repeat(DEPTH), b"}".to_vec(), vec![b's'; DEPTH]].concat();
    fails(&dicts, "dicts are nested more than");
    let wrapped = b"ctorch._utils\n_rebuild_parameter\n".repeat(20);
    let wrapped = [wrapped, tensor(0, b")", b")"), b"\x85R".repeat(20)].concat();
    fails(&weights(&wrapped), "too many nested wrappers");
    // A dict that holds itself.
    fails(b"}q\x01K\x01h\x01s", "repeated too often");
}

#[test]
fn shared_values_do_not_multiply() {
    // Twenty dicts, each with the one before ten times: 10^20 paths to one tensor.
    let mut bomb = weights(&tensor(0, b"K\x04\x85", b"K\x01\x85"));
    for level in 0u8..20 {
        bomb.extend([b'q', level, b'0', b'}', b'(']);
        for key in 0..10 {
            bomb.extend([b'K', key, b'h', level]);
        }
        bomb.push(b'u');
    }
    fails(&bomb, "repeated too often");
    // A long name for each of many dicts in each other.
    let name = [b"X", &100_000u32.to_le_bytes()[..], &[b'n'; 100_000], b"q\x01"].concat();
    let head = [b"}", &name[..], &tensor(0, b")", b")"), b"sq\x02"].concat();
    let names = [head, b"0}h\x01h\x02sq\x02".repeat(30)].concat();
    fails(&names, "the names of the tensors are longer");
}

/// Programs of 5 MB that allocate as much as they can. The limit of values or that of the file's
/// size stops each.
#[test]
fn no_program_takes_more_than_a_multiple_of_its_size() {
    const N: usize = 5_000_000;
    for unit in [&b"}"[..], b"]", b"(", b")", b"N", b"}\x94", b"N\x94", b"N2", b"(t", b"NNR", b"NQ"]
    {
        let error = open(&unit.repeat(N / unit.len())).err().unwrap();
        assert!(error.to_string().contains("hostile.bin"), "{error}");
    }
    // A tall stack, then small tuples: none may keep the tall stack's capacity.
    let tall = [b"N2".repeat(1000), vec![b'2'; 3_000_000], b"(0(N0t".repeat(300_000)].concat();
    assert!(open(&tall).is_err());
    if cfg!(target_os = "linux") {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
        let kib: usize = peak.trim().trim_end_matches(" kB").parse().unwrap();
        assert!(kib < 1 << 19, "the peak was {kib} KiB");
    }
}
