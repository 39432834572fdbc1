//! From observed inputs to what the quantizers need of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shardwright_format::unit::TensorEntry;
use shardwright_format::{Refusal, Unit, mismatch};
use shardwright_quant::{Encoding, HessianFactor, Method, Objective};

use super::moments::Moments;
use super::spares::Spares;
use super::statistics::{Hessian, InputKey, InputStats};

/// Added to the diagonal, as a share of its mean: inputs are never known well enough to be
/// trusted further.
pub const DAMPING: f32 = 0.05;

/// What an error of a tensor costs.
#[derive(Clone, Debug)]
pub enum SharedObjective {
    /// The same everywhere: nothing is known of the inputs.
    Weights,
    /// By column.
    Diagonal(Arc<[f32]>),
    /// By all pairs of columns.
    Hessian(Arc<HessianFactor>),
}

impl SharedObjective {
    /// As the quantizer takes it.
    pub fn as_objective(&self) -> Objective<'_> {
        match self {
            Self::Weights => Objective::Weights,
            Self::Diagonal(values) => Objective::Diagonal(values),
            Self::Hessian(feedback) => Objective::Hessian(feedback),
        }
    }
}

/// Factors are shared by the matrices of a place that are rounded in the same basis.
type Basis = (InputKey, bool);

/// Inputs that were observed, and the factors made of them so far.
#[derive(Debug, Default)]
pub struct Objectives {
    moments: Moments,
    /// Whether they outlast the units that are made by them, and factors must not.
    lasting: bool,
    /// Whether the embedding is only looked up, and multiplied with nothing.
    untied: bool,
    factors: Mutex<BTreeMap<Basis, Arc<HessianFactor>>>,
    /// Where the memory of factors comes from.
    spares: Arc<Spares>,
}

impl Objectives {
    /// Of what was observed for a few units.
    pub fn new(inputs: InputStats) -> Self {
        Self { moments: Moments::Held(inputs), ..Self::default() }
    }

    /// The same with the memory of factors from `spares`.
    #[must_use]
    pub fn within(mut self, spares: &Arc<Spares>) -> Self {
        self.spares = Arc::clone(spares);
        self
    }

    /// Leaves the memory of what was known of experts to those that come after them. A layer's other parts come once.
    pub fn reuse(self) {
        if let Moments::Held(inputs) = self.moments {
            for (key, hessian) in inputs {
                if let (Some(_), Hessian::Full(products)) = (key.expert, hessian) {
                    self.spares.put(products);
                }
            }
        }
        let factors = self.factors.into_inner();
        for ((key, _), factor) in factors.unwrap_or_else(PoisonError::into_inner) {
            if let (Some(_), Some(factor)) = (key.expert, Arc::into_inner(factor)) {
                self.spares.put(factor.into_buffer());
            }
        }
    }

    /// Of what is known of a whole model, wherever it lies.
    pub fn from_moments(moments: Moments) -> Self {
        Self { moments, lasting: true, ..Self::default() }
    }

    /// The same for a model whose head is, or is not, the embedding.
    #[must_use]
    pub const fn tied(mut self, tied: bool) -> Self {
        self.untied = !tied;
        self
    }

    /// What is known.
    pub const fn moments(&self) -> &Moments {
        &self.moments
    }

    /// Forgets the factors of a unit that is made, since no other has its inputs; those of a few units go together.
    pub fn forget(&self, unit: Unit) {
        let expert = match unit {
            Unit::Expert { expert, .. } => Some(expert),
            _ => None,
        };
        let others = |key: &InputKey| (key.layer, key.expert) != (unit.layer(), expert);
        self.factors()
            .retain(|(key, _), _| !self.lasting || others(key));
    }

    /// What is known for a tensor of `unit`, by as much as `method` can use.
    ///
    /// # Errors
    /// Inputs of another width than the tensor's, or that no damping makes invertible.
    pub fn objective(
        &self,
        unit: Unit,
        entry: &TensorEntry,
        method: Method,
    ) -> Result<SharedObjective, Refusal> {
        let asked = asked(unit, entry, method, !self.untied);
        let Some((key, (cols, full))) = asked.and_then(|k| Some((k, self.moments.place(k)?)))
        else {
            return Ok(SharedObjective::Weights);
        };
        if cols != entry.cols {
            return Err(mismatch(format_args!("{} inputs", entry.cols), cols).at("statistics"));
        }
        match method {
            _ if is_rotated(entry.encoding) => self.feedback(key, full, entry),
            Method::Gptq if full => self.feedback(key, full, entry),
            Method::Gptq | Method::Importance => {
                Ok(SharedObjective::Diagonal(self.moments.diagonal(key)?.into()))
            }
            Method::MinMax | Method::Search => Ok(SharedObjective::Weights),
        }
    }

    fn feedback(
        &self,
        key: InputKey,
        full: bool,
        entry: &TensorEntry,
    ) -> Result<SharedObjective, Refusal> {
        let basis = (key, is_rotated(entry.encoding));
        if let Some(found) = self.factors().get(&basis) {
            return Ok(SharedObjective::Hessian(Arc::clone(found)));
        }
        let gram = if full {
            self.moments.products(key)?
        } else {
            diagonal(&self.moments.diagonal(key)?).into()
        };
        // Not held while the factor is made: each unit has inputs of its own.
        let buffer = self.spares.take(gram.len());
        let cols = entry.cols as usize;
        let made = HessianFactor::in_buffer(buffer, &gram, cols, DAMPING, entry.encoding);
        let made = Arc::new(made.map_err(|e| format!("statistics: {e}"))?);
        self.factors().insert(basis, Arc::clone(&made));
        Ok(SharedObjective::Hessian(made))
    }

    fn factors(&self) -> MutexGuard<'_, BTreeMap<Basis, Arc<HessianFactor>>> {
        self.factors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const fn is_rotated(encoding: Encoding) -> bool {
    matches!(encoding, Encoding::Trellis(_))
}

/// The inputs that the codes of a tensor are chosen by, where they are known: none for plain floats, for methods that
/// look at weights alone, and for an embedding that is not `tied` to the head, since it is only looked up.
pub fn asked(unit: Unit, entry: &TensorEntry, method: Method, tied: bool) -> Option<InputKey> {
    let looked_up = !tied && unit == Unit::Embedding;
    let coded = entry.encoding.float().is_none();
    let by_inputs =
        is_rotated(entry.encoding) || matches!(method, Method::Gptq | Method::Importance);
    InputKey::for_tensor(unit, entry.role).filter(|_| coded && by_inputs && !looked_up)
}

/// The matrix `[n, n]` with `values` on its diagonal.
fn diagonal(values: &[f32]) -> Vec<f32> {
    let n = values.len();
    let mut matrix = vec![0.0; n * n];
    for (at, value) in values.iter().enumerate() {
        matrix[at * n + at] = *value;
    }
    matrix
}

#[cfg(test)]
mod tests {
    use shardwright_format::{Role, SourceView};
    use shardwright_quant::{Affine, Float};
    use shardwright_runtime::InputSite;

    use super::*;
    use crate::calibrate::statistics::Hessian;

    fn entry(role: Role) -> TensorEntry {
        let encoding = Encoding::Affine(Affine::new(4, 32, Float::F16).unwrap());
        let source = SourceView::whole(role.name().to_owned(), Float::F16, vec![8, 32], 32);
        TensorEntry { role, encoding, rows: 8, cols: 32, offset: 0, source }
    }

    #[test]
    fn an_embedding_is_guided_by_the_heads_inputs_only_where_it_is_the_head() {
        let key = InputKey { layer: None, expert: None, site: InputSite::Head };
        let inputs = || InputStats::from([(key, Hessian::Diagonal(vec![1.0; 32]))]);
        let embed = entry(Role::EmbedTokens);
        let costs = |tied, unit, entry: &TensorEntry| {
            let objectives = Objectives::new(inputs()).tied(tied);
            objectives
                .objective(unit, entry, Method::Importance)
                .unwrap()
        };
        assert!(matches!(costs(true, Unit::Embedding, &embed), SharedObjective::Diagonal(_)));
        assert!(matches!(costs(false, Unit::Embedding, &embed), SharedObjective::Weights));
        let head = entry(Role::LmHead);
        assert!(matches!(costs(false, Unit::Head, &head), SharedObjective::Diagonal(_)));
    }
}
