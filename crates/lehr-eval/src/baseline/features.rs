//! From a text to weighted features: words and word pairs, or characters and character pairs.

use std::collections::HashMap;

/// With more training texts than this, a feature must occur in two of them.
const RARE_FEATURES_UP_TO: usize = 1_000;

/// Sparse rows of feature weights, in compressed form.
#[derive(Clone, Debug, Default)]
pub(super) struct Rows {
    /// Row `i` is `ends[i - 1]..ends[i]` of the two lists below.
    pub(super) ends: Vec<usize>,
    pub(super) columns: Vec<u32>,
    pub(super) values: Vec<f32>,
}

impl Rows {
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn row(&self, i: usize) -> (&[u32], &[f32]) {
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        (&self.columns[start..self.ends[i]], &self.values[start..self.ends[i]])
    }
}

/// The features of the training texts, with their inverse document frequencies.
#[derive(Clone, Debug)]
pub(super) struct Vocabulary {
    columns: HashMap<Box<str>, u32>,
    idf: Vec<f32>,
}

impl Vocabulary {
    /// Selects the features: all if there are at most a thousand texts, otherwise those that occur
    /// in two texts or more. Keeps at most the `max_features` most frequent.
    pub(super) fn new<'a>(texts: impl Iterator<Item = &'a str>, max_features: usize) -> Self {
        let (names, counts, n_texts) = document_counts(texts);
        let min_count = if n_texts > RARE_FEATURES_UP_TO { 2 } else { 1 };
        let mut kept: Vec<usize> = (0..counts.len()).filter(|&i| counts[i] >= min_count).collect();
        // A stable sort: equally frequent features stay in the order of the texts.
        kept.sort_by_key(|&i| std::cmp::Reverse(counts[i]));
        kept.truncate(max_features);
        let idf = kept.iter().map(|&i| inverse_document_frequency(n_texts, counts[i])).collect();
        let mut new_column = vec![None; counts.len()];
        for (column, &i) in kept.iter().enumerate() {
            new_column[i] = Some(column as u32);
        }
        let columns = names
            .into_iter()
            .filter_map(|(name, i)| new_column[i].map(|column| (name, column)))
            .collect();
        Self { columns, idf }
    }

    pub(super) fn len(&self) -> usize {
        self.idf.len()
    }

    /// The tf-idf rows of texts. Features outside the vocabulary are left out.
    pub(super) fn rows<'a>(&self, texts: impl Iterator<Item = &'a str>) -> Rows {
        let mut rows = Rows::default();
        for text in texts {
            self.push_row(text, &mut rows);
        }
        rows
    }

    /// Appends `(1 + ln tf) · idf` of each feature, divided by the row's Euclidean norm.
    fn push_row(&self, text: &str, rows: &mut Rows) {
        let mut found: Vec<u32> = Vec::new();
        for_each_feature(text, |name| found.extend(self.columns.get(name)));
        found.sort_unstable();
        let start = rows.values.len();
        for same in found.chunk_by(|a, b| a == b) {
            let tf = 1.0 + (same.len() as f32).ln();
            rows.columns.push(same[0]);
            rows.values.push(tf * self.idf[same[0] as usize]);
        }
        let norm = rows.values[start..].iter().map(|v| v * v).sum::<f32>().sqrt();
        for value in &mut rows.values[start..] {
            *value /= norm;
        }
        rows.ends.push(rows.values.len());
    }
}

/// Every feature with its number in order of appearance, the number of texts each occurs in, and
/// the number of texts.
fn document_counts<'a>(
    texts: impl Iterator<Item = &'a str>,
) -> (HashMap<Box<str>, usize>, Vec<u32>, usize) {
    let mut names: HashMap<Box<str>, usize> = HashMap::new();
    let mut counts: Vec<u32> = Vec::new();
    let mut last_text: Vec<usize> = Vec::new();
    let mut n_texts = 0;
    for text in texts {
        n_texts += 1;
        for_each_feature(text, |name| {
            let Some(&i) = names.get(name) else {
                names.insert(name.into(), counts.len());
                counts.push(1);
                last_text.push(n_texts);
                return;
            };
            if last_text[i] != n_texts {
                last_text[i] = n_texts;
                counts[i] += 1;
            }
        });
    }
    (names, counts, n_texts)
}

/// `ln((1 + n) / (1 + df)) + 1`: as if one more text contained every feature. Scikit-learn's
/// default.
fn inverse_document_frequency(n_texts: usize, count: u32) -> f32 {
    ((1.0 + n_texts as f32) / (1.0 + count as f32)).ln() + 1.0
}

/// Kind of a piece of text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A word of a script with spaces.
    Word,
    /// One character of a script without.
    Character,
    /// A run of punctuation, emoji and other signs.
    Signs,
}

/// A piece of the lower-cased text.
#[derive(Clone, Copy, Debug)]
struct Piece {
    kind: Kind,
    start: usize,
    end: usize,
}

/// Calls `f` with each feature of the text, as often as it occurs: all pieces, pairs of words
/// (signs in between do not matter), and pairs of neighbouring characters.
fn for_each_feature(text: &str, mut f: impl FnMut(&str)) {
    let text = text.to_lowercase();
    let mut pair = String::new();
    let mut last_word: Option<Piece> = None;
    let mut last: Option<Piece> = None;
    for piece in pieces(&text) {
        let this = &text[piece.start..piece.end];
        f(this);
        match (piece.kind, last_word, last) {
            (Kind::Word, Some(word), _) => {
                pair.clear();
                pair.push_str(&text[word.start..word.end]);
                pair.push(' ');
                pair.push_str(this);
                f(&pair);
            }
            (Kind::Character, _, Some(before))
                if before.kind == Kind::Character && before.end == piece.start =>
            {
                f(&text[before.start..piece.end]);
            }
            _ => {}
        }
        match piece.kind {
            Kind::Word => last_word = Some(piece),
            Kind::Character => last_word = None,
            Kind::Signs => {}
        }
        last = Some(piece);
    }
}

/// Cuts a text into pieces. White space separates pieces and belongs to none.
fn pieces(text: &str) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    let mut chars = text.char_indices().peekable();
    while let Some((start, c)) = chars.next() {
        if c.is_whitespace() {
            continue;
        }
        let end = start + c.len_utf8();
        let last = pieces.last_mut().filter(|p| p.end == start);
        let next_in_word = chars.peek().is_some_and(|(_, next)| is_word(*next));
        let kind = match &last {
            Some(p) if p.kind == Kind::Word && is_apostrophe(c) && next_in_word => Kind::Word,
            _ => kind_of(c),
        };
        match last {
            Some(p) if p.kind == kind && kind != Kind::Character => p.end = end,
            _ => pieces.push(Piece { kind, start, end }),
        }
    }
    pieces
}

fn kind_of(c: char) -> Kind {
    if is_unspaced(c) {
        Kind::Character
    } else if is_word(c) {
        Kind::Word
    } else {
        Kind::Signs
    }
}

fn is_apostrophe(c: char) -> bool {
    matches!(c, '\'' | '’')
}

/// Letters, digits, and the marks that Rust does not count as letters but that sit inside words:
/// combining accents and the vowel killers of the scripts of India.
fn is_word(c: char) -> bool {
    let is_mark =
        matches!(c, '\u{300}'..='\u{36f}' | '\u{900}'..='\u{963}' | '\u{966}'..='\u{df3}');
    (c.is_alphanumeric() || is_mark) && !is_unspaced(c)
}

/// Scripts written without spaces between words: Chinese characters, kana, bopomofo, Thai, Lao,
/// Burmese, Khmer. Korean has spaces.
fn is_unspaced(c: char) -> bool {
    let in_block = matches!(c,
        '\u{e00}'..='\u{eff}' | '\u{1000}'..='\u{109f}' | '\u{1780}'..='\u{17ff}'
        | '\u{3005}'..='\u{3007}' | '\u{3041}'..='\u{312f}' | '\u{31a0}'..='\u{31ff}'
        | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}'
        | '\u{ff66}'..='\u{ff9f}' | '\u{20000}'..='\u{3ffff}');
    in_block && c != '\u{30fb}'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(text: &str) -> Vec<String> {
        let mut all = Vec::new();
        for_each_feature(text, |name| all.push(name.to_owned()));
        all
    }

    #[test]
    fn words_give_words_and_pairs_in_lower_case() {
        assert_eq!(
            features("Don't PANIC, please"),
            ["don't", "panic", "don't panic", ",", "please", "panic please"]
        );
        assert_eq!(
            features("It's 'so' 2.5"),
            ["it's", "'", "so", "it's so", "'", "2", "so 2", ".", "5", "2 5"]
        );
    }

    #[test]
    fn chinese_gives_characters_and_pairs_within_a_run() {
        assert_eq!(features("很好，买！"), ["很", "好", "很好", "，", "买", "！"]);
        assert_eq!(features("好 书"), ["好", "书"]);
    }

    #[test]
    fn mixed_text_has_no_pairs_across_scripts() {
        assert_eq!(
            features("我买iPhone 手机ok"),
            ["我", "买", "我买", "iphone", "手", "机", "手机", "ok"]
        );
    }

    #[test]
    fn marks_stay_inside_words_and_korean_is_words() {
        assert_eq!(features("क्या हिन्दी।"), ["क्या", "हिन्दी", "क्या हिन्दी", "।"]);
        assert_eq!(features("cafe\u{301}"), ["cafe\u{301}"]);
        assert_eq!(features("좋은 책"), ["좋은", "책", "좋은 책"]);
    }

    #[test]
    fn texts_of_nothing_have_no_features() {
        assert_eq!(features(""), [""; 0]);
        assert_eq!(features(" \n\t\u{3000}"), [""; 0]);
    }

    #[test]
    fn rows_are_tf_idf_of_norm_one() {
        let texts = ["a b", "a a a", "c"];
        let vocabulary = Vocabulary::new(texts.into_iter(), 100);
        // a, b, "a b", "a a", c.
        assert_eq!(vocabulary.len(), 5);
        let rows = vocabulary.rows(["a b b zzz", "zzz", ""].into_iter());
        let (columns, values) = rows.row(0);
        let weight = |name: &str| {
            let column = vocabulary.columns[name];
            values[columns.iter().position(|c| *c == column).unwrap()]
        };
        assert_eq!(columns.len(), 3);
        let [idf_a, idf_b] = [(4.0_f32 / 3.0).ln() + 1.0, 2.0_f32.ln() + 1.0];
        let tf_b = 1.0 + 2.0_f32.ln();
        assert!((weight("a") / weight("b") - idf_a / (idf_b * tf_b)).abs() < 1e-6);
        assert!((values.iter().map(|v| v * v).sum::<f32>() - 1.0).abs() < 1e-6);
        assert!(rows.row(1).0.is_empty() && rows.row(2).0.is_empty());
    }

    #[test]
    fn rare_features_are_dropped_only_with_many_texts() {
        let few: Vec<String> = (0..1_000).map(|i| format!("word{i}")).collect();
        assert_eq!(Vocabulary::new(few.iter().map(String::as_str), 9_999).len(), 1_000);
        let many: Vec<String> = (0..1_001).map(|i| format!("word{}", i.min(999))).collect();
        assert_eq!(Vocabulary::new(many.iter().map(String::as_str), 9_999).len(), 1);
    }

    #[test]
    fn the_most_frequent_features_are_kept() {
        let vocabulary = Vocabulary::new(["a b", "a", "b", "b c"].into_iter(), 2);
        assert_eq!(vocabulary.columns[&*"b".to_owned()], 0);
        assert_eq!(vocabulary.columns[&*"a".to_owned()], 1);
        assert_eq!(vocabulary.len(), 2);
    }
}
