//! Parameter groups: which numbers AdamW uses for a parameter.

use lehr_tensor::{Param, Role};

use crate::recipe::{AdamwConfig, GroupChange, GroupConfig, MuonConfig};

/// A group of parameters with numbers of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Group {
    Matrices,
    Embeddings,
    Head,
    Others,
}

impl Group {
    fn of(param: &Param) -> Self {
        let is_matrix = param.shape().len() >= 2;
        match param.role() {
            role if role.is_embedding() => Self::Embeddings,
            Role::Head if is_matrix => Self::Head,
            _ if is_matrix => Self::Matrices,
            _ => Self::Others,
        }
    }
}

/// The numbers of AdamW for a parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct GroupRule {
    /// Factor on the learning rate of the step.
    pub(super) lr_scale: f32,
    pub(super) beta1: f32,
    pub(super) beta2: f32,
    pub(super) weight_decay: f32,
    /// Whether rows without a gradient are left alone.
    pub(super) lazy: bool,
}

/// The numbers of all groups.
#[derive(Clone, Copy, Debug)]
pub(super) struct Groups {
    matrices: GroupRule,
    embeddings: GroupRule,
    head: GroupRule,
    others: GroupRule,
}

impl Groups {
    /// The groups of a run with AdamW whose peak rate is `lr`.
    pub(super) fn of_adamw(config: &AdamwConfig, lr: f32) -> Self {
        let AdamwConfig { beta1, beta2, weight_decay, embedding_lr_ratio, .. } = *config;
        let all = GroupRule { lr_scale: 1.0, beta1, beta2, weight_decay, lazy: false };
        let changed = |all: GroupRule, change: &GroupChange| GroupRule {
            lr_scale: change.lr.map_or(all.lr_scale, |own| share(own, lr)),
            beta1: change.beta1.unwrap_or(all.beta1),
            beta2: change.beta2.unwrap_or(all.beta2),
            weight_decay: change.weight_decay.unwrap_or(all.weight_decay),
            ..all
        };
        let embeddings = GroupRule { lr_scale: embedding_lr_ratio, ..all };
        Self {
            matrices: changed(all, &config.matrices),
            embeddings: changed(embeddings, &config.embeddings),
            head: changed(all, &config.head),
            others: changed(GroupRule { weight_decay: 0.0, ..all }, &config.others),
        }
    }

    /// The groups beside the matrices of a run with Muon, whose peak rate is `lr`.
    pub(super) fn of_muon(config: &MuonConfig, lr: f32) -> Self {
        let rule = |group: &GroupConfig| {
            let GroupConfig { lr: own, beta1, beta2, weight_decay } = *group;
            GroupRule { lr_scale: share(own, lr), beta1, beta2, weight_decay, lazy: false }
        };
        let others = rule(&config.others);
        let lazy = config.lazy_embeddings;
        let embeddings = GroupRule { lazy, ..rule(&config.embeddings) };
        let head = rule(&config.head);
        Self { matrices: others, embeddings, head, others }
    }

    /// Returns the numbers of a parameter.
    pub(super) fn rule(&self, param: &Param) -> GroupRule {
        match Group::of(param) {
            Group::Matrices => self.matrices,
            Group::Embeddings => self.embeddings,
            Group::Head => self.head,
            Group::Others => self.others,
        }
    }
}

/// A group's rate as a share of the peak rate, which the schedule scales.
fn share(own: f32, lr: f32) -> f32 {
    if own == 0.0 { 0.0 } else { own / lr }
}
