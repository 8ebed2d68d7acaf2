//! How a token is chosen, on a GPU as on the CPU.

/// How the next token is chosen. Filters apply in the order of the fields.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits of tokens already in the text are divided by this if positive, multiplied if
    /// negative (Keskar et al. 2019); 1 = off.
    pub repetition_penalty: f32,
    /// Subtracted from the logit of a token once for every time it was generated; 0 = off.
    pub frequency_penalty: f32,
    /// Subtracted from the logits of all tokens that were generated; 0 = off.
    pub presence_penalty: f32,
    /// Logits are divided by this; 0 = always the most likely token.
    pub temperature: f32,
    /// Keep the most likely `top_k`; 0 = all.
    pub top_k: usize,
    /// Keep the smallest set of most likely tokens with this probability (Holtzman et al. 2020);
    /// 1 = all.
    pub top_p: f32,
    /// Keep tokens at least this likely relative to the most likely one; 0 = all.
    pub min_p: f32,
    /// Names the stream of random numbers.
    pub seed: u64,
}

impl Sampling {
    /// Always the most likely token.
    pub const GREEDY: Self = Self {
        repetition_penalty: 1.0,
        frequency_penalty: 0.0,
        presence_penalty: 0.0,
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        seed: 0,
    };

    /// Whether the most likely token is taken and nothing drawn.
    #[must_use]
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0 || self.top_k == 1
    }

    /// Whether logits depend on the text so far.
    #[must_use]
    pub fn has_penalty(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.frequency_penalty != 0.0
            || self.presence_penalty != 0.0
    }

    /// The first setting that is out of range: its name, its value, what is expected.
    #[must_use]
    pub fn fault(&self) -> Option<(&'static str, f32, &'static str)> {
        let Self { temperature: t, top_p, min_p, .. } = *self;
        let Self { repetition_penalty: r, frequency_penalty: f, presence_penalty: p, .. } = *self;
        let checks = [
            ("temperature", t, t.is_finite() && t >= 0.0, "0 or more"),
            ("top_p", top_p, top_p > 0.0 && top_p <= 1.0, "more than 0, at most 1"),
            ("min_p", min_p, (0.0..=1.0).contains(&min_p), "0 to 1"),
            ("repetition_penalty", r, r.is_finite() && r > 0.0, "more than 0"),
            ("frequency_penalty", f, f.is_finite(), "a number"),
            ("presence_penalty", p, p.is_finite(), "a number"),
        ];
        let bad = checks.into_iter().find(|(_, _, good, _)| !good);
        bad.map(|(name, value, _, expected)| (name, value, expected))
    }

    /// As `struct Settings` of the kernels.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let floats = [
            self.temperature,
            self.top_p,
            self.min_p,
            self.repetition_penalty,
            self.frequency_penalty,
            self.presence_penalty,
        ];
        let mut bytes: Vec<u8> = floats.iter().flat_map(|x| x.to_ne_bytes()).collect();
        // More than there are ids is all of them.
        let top_k = u32::try_from(self.top_k).unwrap_or(u32::MAX);
        bytes.extend(top_k.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(self.seed.to_ne_bytes());
        bytes
    }
}
