//! Every type of blocks with what reads it.

use super::lines::{
    Iq4Nl, Iq4Xs, Large, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, Small,
};
use super::points::{Iq2S, Iq2Xs, Iq2Xxs, Iq3S, Iq3Xxs};
use crate::blocks::Blocks;

/// What is done with the type behind a [`Blocks`].
pub trait WithType {
    /// Of blocks of 32 columns.
    fn small<T: Small<BYTES>, const BYTES: usize>(self);

    /// Of blocks of 256 columns.
    fn large<T: Large<BYTES>, const BYTES: usize>(self);
}

/// Does it with the type of `blocks`.
pub fn with_type(blocks: Blocks, what: impl WithType) {
    match blocks {
        Blocks::Q4_0 => what.small::<Q4_0, 18>(),
        Blocks::Q4_1 => what.small::<Q4_1, 20>(),
        Blocks::Q5_0 => what.small::<Q5_0, 22>(),
        Blocks::Q5_1 => what.small::<Q5_1, 24>(),
        Blocks::Q8_0 => what.small::<Q8_0, 34>(),
        Blocks::Iq4Nl => what.small::<Iq4Nl, 18>(),
        Blocks::Q2K => what.large::<Q2K, 84>(),
        Blocks::Q3K => what.large::<Q3K, 110>(),
        Blocks::Q4K => what.large::<Q4K, 144>(),
        Blocks::Q5K => what.large::<Q5K, 176>(),
        Blocks::Q6K => what.large::<Q6K, 210>(),
        Blocks::Iq4Xs => what.large::<Iq4Xs, 136>(),
        Blocks::Iq2Xxs => what.large::<Iq2Xxs, 66>(),
        Blocks::Iq2Xs => what.large::<Iq2Xs, 74>(),
        Blocks::Iq2S => what.large::<Iq2S, 82>(),
        Blocks::Iq3Xxs => what.large::<Iq3Xxs, 98>(),
        Blocks::Iq3S => what.large::<Iq3S, 110>(),
    }
}
