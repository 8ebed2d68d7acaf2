//! Texts on which two tokenizers are compared.

use lehr_model::Model;
use lehr_tokenizer::Tokenizer;
use serde_json::Value;

use super::{Fault, Part};

/// Texts that tokenizers read differently: several scripts, runs of white space, line ends, digits,
/// letter case, bytes without a character of their own.
const TEXTS: [&str; 12] = [
    "Привет, мир! Ζήτω ο κόσμος. שלום עולם",
    "مرحبا بالعالم ١٢٣ नमस्ते दुनिया สวัสดีชาวโลก",
    "你好，世界。こんにちは、世界！안녕하세요 세계 台 北",
    "👩‍👩‍👧 😀🏽 🇫🇷 \u{1F9EA}\u{200D}\u{FE0F} ∀x∈ℝ: ⌈x⌉ ≤ x+1 №½ ﬁ Ａ１",
    " leading and trailing ",
    "  two   three    four\tTab\t\tTabs",
    "lines\nand\n\nmore\r\nof\rthem\n\n\n",
    "MiXeD CaSe DON'T don't I'LL we've naïve café ÅÄÖ ß İstanbul",
    "1 22 333 4444 55555 1,234.56 0x7F 3e-8 007",
    "def f(x):\n    return {'a': [x**2, x//3]}  # TODO: ≠\n\tif x: pass",
    "a_b-c/d\\e|f~g`h^i@j#k$l%m&n*o(p)q[r]s{t}u<v>w;x:y\"z'?!",
    "\u{FEFF}bom\u{200B}zero\u{00A0}nbsp\u{3000}wide\u{00AD}soft\u{0007}bell",
];

/// Texts with characters that are composed of several, as macOS writes them. A tokenizer that
/// composes them reads them as their composed forms.
const DECOMPOSED: [&str; 3] = [
    "cafe\u{301} nai\u{308}ve A\u{30A}ngstro\u{308}m",
    "\u{1112}\u{1161}\u{11AB}\u{1100}\u{1173}\u{11AF}",
    "か\u{3099}き\u{3099} क\u{93C} e\u{302}\u{323}",
];

/// Most added tokens that are compared.
const MOST_ADDED: usize = 512;
/// Most ids of the sequence on which the weights are compared.
const MOST_IDS: usize = 128;
/// Most added tokens in it.
const MOST_IN_SEQUENCE: usize = 24;

/// Returns the names of added tokens, at most `most` and spread over all of them.
fn added_tokens(tokenizer: &Tokenizer, most: usize) -> Vec<String> {
    let json: Value = serde_json::from_str(&tokenizer.to_json()).unwrap_or_default();
    let listed = json["added_tokens"].as_array().into_iter().flatten();
    let names: Vec<_> =
        listed.filter_map(|token| Some(token["content"].as_str()?.into())).collect();
    let step = names.len().div_ceil(most).max(1);
    names.into_iter().step_by(step).collect()
}

/// Returns whether the tokenizer composes characters first, which GGUF cannot say.
fn composes(tokenizer: &Tokenizer) -> bool {
    lehr_tokenizer::VocabParts::unsaid(tokenizer).iter().any(|part| part.contains("NFC"))
}

/// Returns ids of texts in several scripts and of added tokens, for comparing what the weights
/// compute; `None` if the model wants its texts in another form.
pub(crate) fn probe_ids(model: &Model, tokenizer: &Tokenizer) -> Option<Vec<i32>> {
    let spec = model.spec();
    let texts: String = TEXTS[..4].join(" ");
    let added = added_tokens(tokenizer, MOST_IN_SEQUENCE);
    let mut ids = tokenizer.encode_with_special(&added.concat()).ok()?;
    ids.extend(tokenizer.encode(&texts).ok()?);
    ids.truncate(MOST_IDS.min(spec.max_positions));
    let ids: Vec<i32> = ids.into_iter().map(|id| id as i32).collect();
    let is_known = ids.iter().all(|id| (*id as usize) < spec.vocab_size);
    (is_known && !ids.is_empty() && model.tokens(&ids, 1).is_ok()).then_some(ids)
}

/// Lists the first difference of each kind between a tokenizer and its copy: ids of texts, bytes
/// and purposes of ids.
pub(crate) fn tokenizer_faults(source: &Tokenizer, copy: &Tokenizer) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut add = |text: String| faults.push(Fault { part: Part::Tokenizer, text });
    let mut texts: Vec<String> = TEXTS.map(str::to_owned).to_vec();
    if !composes(source) || composes(copy) {
        texts.extend(DECOMPOSED.map(str::to_owned));
    }
    for name in added_tokens(source, MOST_ADDED) {
        texts.push(format!("a{name}b {name} c  {name}{name}\n{name}\n {name}"));
    }
    if let Some(fault) = texts.iter().find_map(|text| other_ids(source, copy, text)) {
        add(fault);
    }
    let n = u32::try_from(source.vocab_size()).unwrap_or(u32::MAX);
    let differs =
        |id: &u32| source.token(*id).is_some() && source.token_bytes(*id) != copy.token_bytes(*id);
    if let Some(id) = (0..n).find(differs) {
        let text = |tokenizer: &Tokenizer| {
            let bytes = tokenizer.token_bytes(id).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        add(format!("id {id} decodes to {:?}, expected {:?}", text(copy), text(source)));
    }
    let (want, found) = (source.special_ids(), copy.special_ids());
    for (name, want, found) in [
        ("begins", want.bos, found.bos),
        ("ends", want.eos, found.eos),
        ("pads", want.pad, found.pad),
    ] {
        if want.is_some() && want != found {
            add(format!("the id that {name} a text is {found:?}, expected {want:?}"));
        }
    }
    faults
}

/// Describes the ids of a text, if they differ.
pub(crate) fn other_ids(source: &Tokenizer, copy: &Tokenizer, text: &str) -> Option<String> {
    type Encode = fn(&Tokenizer, &str) -> lehr_tokenizer::Result<Vec<u32>>;
    let ways: [(Encode, &str); 3] = [
        (Tokenizer::encode_for_model, "plain text"),
        (Tokenizer::encode_prompt, "a prompt"),
        (Tokenizer::encode_with_special, "text with added tokens"),
    ];
    ways.into_iter().find_map(|(encode, what)| {
        let (want, found) = (encode(source, text).ok(), encode(copy, text).ok());
        if want == found {
            return None;
        }
        let brief = |ids: &Option<Vec<u32>>, at: usize| match ids {
            Some(ids) => format!("{:?}", &ids[at.min(ids.len())..(at + 6).min(ids.len())]),
            None => "an error".to_owned(),
        };
        let both = want.iter().flatten().zip(found.iter().flatten());
        let at = both.take_while(|(a, b)| a == b).count();
        let (found, want) = (brief(&found, at), brief(&want, at));
        let text: String = text.chars().take(48).collect();
        Some(format!("{text:?} as {what} is {found} from id {at} on, expected {want}"))
    })
}
