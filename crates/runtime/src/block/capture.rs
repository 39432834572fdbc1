//! What goes into a layer's matrices, kept for those who calibrate.

use rayon::prelude::*;
use shardwright_format::Role;

/// Matrices that share their input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum InputSite {
    /// The mixer's first projections: queries, keys and values.
    Mixer,
    /// The second projection of queries, behind their latent.
    QueryLatent,
    /// The second projection of keys and values, behind their latent.
    KvLatent,
    /// The mixer's last projection.
    MixerOut,
    /// What the feed-forward begins with: gate and up, the router, the shared expert's gate.
    Ffn,
    /// The down projection of a layer's only feed-forward.
    FfnOut,
    /// The down projection of the shared expert.
    SharedOut,
    /// Gate and up of a routed expert.
    Expert,
    /// The down projection of a routed expert.
    ExpertOut,
    /// The head, after the final norm.
    Head,
}

impl InputSite {
    /// Every input, in the order of a layer.
    pub const ALL: [Self; 10] = [
        Self::Mixer,
        Self::QueryLatent,
        Self::KvLatent,
        Self::MixerOut,
        Self::Ffn,
        Self::FfnOut,
        Self::SharedOut,
        Self::Expert,
        Self::ExpertOut,
        Self::Head,
    ];

    /// Its name in files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mixer => "mixer",
            Self::QueryLatent => "query_latent",
            Self::KvLatent => "kv_latent",
            Self::MixerOut => "mixer_out",
            Self::Ffn => "ffn",
            Self::FfnOut => "ffn_out",
            Self::SharedOut => "shared_expert_out",
            Self::Expert => "expert",
            Self::ExpertOut => "expert_out",
            Self::Head => "head",
        }
    }

    /// The input of the matrices with a role; none for roles that multiply nothing.
    pub const fn from_role(role: Role) -> Option<Self> {
        Some(match role {
            Role::QProj
            | Role::KProj
            | Role::VProj
            | Role::QAProj
            | Role::KvAProj
            | Role::ShortConvIn
            | Role::DeltaQkvz
            | Role::DeltaBa
            | Role::DeltaQkv
            | Role::DeltaZ
            | Role::DeltaB
            | Role::DeltaA => Self::Mixer,
            Role::QBProj => Self::QueryLatent,
            Role::KvBProj => Self::KvLatent,
            Role::OProj | Role::DeltaOutProj | Role::ShortConvOut => Self::MixerOut,
            Role::GateProj
            | Role::UpProj
            | Role::Router
            | Role::SharedGateProj
            | Role::SharedUpProj
            | Role::SharedExpertGate => Self::Ffn,
            Role::DownProj => Self::FfnOut,
            Role::SharedDownProj => Self::SharedOut,
            Role::ExpertGateProj | Role::ExpertUpProj => Self::Expert,
            Role::ExpertDownProj => Self::ExpertOut,
            Role::EmbedTokens | Role::LmHead => Self::Head,
            _ => return None,
        })
    }
}

/// Rows that matrices are multiplied with.
#[derive(Debug)]
pub struct Capture {
    /// Which matrices.
    pub site: InputSite,
    /// Length of a row.
    pub cols: usize,
    /// `[n, cols]`.
    pub rows: Vec<f32>,
}

/// Inputs in the order of their use; nothing is kept unless asked for.
#[derive(Debug, Default)]
pub struct Captures {
    on: bool,
    inputs: Vec<Capture>,
    /// Router scores `[n, experts]` before softmax.
    scores: Vec<f32>,
    /// Buffers of inputs that were shown.
    spare: Vec<Vec<f32>>,
}

/// Values that a thread copies at a time.
const COPIED: usize = 64 << 10;

impl Captures {
    /// Starts with nothing kept; keeps what comes if `on`.
    pub fn start(&mut self, on: bool) {
        *self = Self { on, ..Self::default() };
    }

    /// Whether inputs are all that the layer is computed for: what comes after the last matrix's is used by nobody.
    pub const fn are_all(&self) -> bool {
        self.on
    }

    /// Keeps the rows of `x: [n, cols]` that matrices at `site` are multiplied with.
    pub fn keep(&mut self, site: InputSite, cols: usize, x: &[f32]) {
        if self.on {
            let mut rows = self.spare.pop().unwrap_or_default();
            rows.resize(x.len(), 0.0);
            let parts = rows.par_chunks_mut(COPIED).zip(x.par_chunks(COPIED));
            parts.for_each(|(rows, x)| rows.copy_from_slice(x));
            self.inputs.push(Capture { site, cols, rows });
        }
    }

    /// As [`Self::keep`], of values that nobody needs any more: another buffer takes their place.
    pub fn keep_all(&mut self, site: InputSite, cols: usize, x: &mut Vec<f32>) {
        if self.on {
            let rows = std::mem::replace(x, self.spare.pop().unwrap_or_default());
            self.inputs.push(Capture { site, cols, rows });
        }
    }

    /// Keeps router scores.
    pub fn keep_scores(&mut self, scores: &[f32]) {
        if self.on {
            self.scores.extend_from_slice(scores);
        }
    }

    /// What was kept since the last call.
    pub fn take(&mut self) -> Vec<Capture> {
        std::mem::take(&mut self.inputs)
    }

    /// Takes back what was kept, for what will be.
    pub fn reuse(&mut self, capture: Capture) {
        self.spare.push(capture.rows);
    }

    /// The router scores kept, `[n, experts]`.
    pub fn scores(&self) -> &[f32] {
        &self.scores
    }
}
