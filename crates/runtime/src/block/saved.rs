//! What mixers remember, as bytes: what the next position needs of the ones before it, by position, so that
//! it can be taken up in another run, whatever its context and its chunks.

use std::io::{self, Read, Write};
use std::ops::Range;

use shardwright_format::model::Mixer;

use super::kv::{CacheTypes, Ring};
use super::{MixerState, attention, delta_net, latent, short_conv};

/// Positions before `position` that it sees; none where what is remembered has no positions.
fn seen(mixer: &Mixer, position: usize) -> Option<Range<usize>> {
    match mixer {
        Mixer::Attention(spec) => Some(attention::first_seen(spec, position)..position),
        Mixer::Latent(_) => Some(0..position),
        Mixer::DeltaNet(_) | Mixer::ShortConv(_) => None,
    }
}

/// Whether of what was saved at position `saved` the first `kept` positions can be taken up.
pub fn can_keep(mixer: &Mixer, saved: usize, kept: usize) -> bool {
    match (seen(mixer, saved), seen(mixer, kept)) {
        (Some(there), Some(needed)) => kept <= saved && needed.start >= there.start,
        _ => kept == saved,
    }
}

/// Bytes that [`MixerState::save`] writes at `position`.
pub fn saved_len(mixer: &Mixer, hidden: usize, position: usize, types: CacheTypes) -> u64 {
    let rows = seen(mixer, position).map_or(0, |seen| seen.len() as u64);
    match mixer {
        Mixer::Attention(spec) => super::kv::KvCache::byte_len(spec, rows, types),
        Mixer::Latent(spec) => latent::LatentCache::byte_len(spec, position, types),
        Mixer::DeltaNet(spec) => delta_net::State::byte_len(spec),
        Mixer::ShortConv(spec) => short_conv::State::byte_len(spec, hidden),
    }
}

impl MixerState {
    /// Whether this, at `position`, can go back to the first `to` positions.
    pub fn can_return(&self, mixer: &Mixer, position: usize, to: usize) -> bool {
        let from = seen(mixer, to).map_or(0, |seen| seen.start);
        match self {
            Self::Attention(cache) => from >= cache.keys().start(),
            Self::Latent(cache) => from >= cache.rows().start(),
            Self::DeltaNet(_) | Self::ShortConv(_) => to == position,
        }
    }

    /// Writes what `position` needs: rows of keys and of values as they are kept, states in `f32`.
    ///
    /// # Errors
    /// What `out` refuses.
    pub fn save(&self, mixer: &Mixer, position: usize, out: &mut dyn Write) -> io::Result<()> {
        let seen = seen(mixer, position).unwrap_or_default();
        match self {
            Self::Attention(cache) => {
                save_rows(cache.keys(), seen.clone(), out)?;
                save_rows(cache.values(), seen, out)
            }
            Self::Latent(cache) => save_rows(cache.rows(), seen, out),
            Self::DeltaNet(state) => {
                save_values(state.conv(), out)?;
                save_values(state.recurrent(), out)
            }
            Self::ShortConv(state) => save_values(state.conv.inputs(), out),
        }
    }

    /// Takes up the first `kept` positions of what was saved at position `saved`, which
    /// [`can_keep`] allows.
    ///
    /// # Errors
    /// What `input` refuses.
    pub fn load(
        &mut self,
        mixer: &Mixer,
        (saved, kept): (usize, usize),
        input: &mut dyn Read,
    ) -> io::Result<()> {
        let seen = seen(mixer, saved).unwrap_or_default();
        match self {
            Self::Attention(cache) => {
                let [keys, values] = cache.rings();
                load_rows(keys, seen.clone(), kept, input)?;
                load_rows(values, seen, kept, input)
            }
            Self::Latent(cache) => load_rows(cache.rows_mut(), seen, kept, input),
            Self::DeltaNet(state) => state
                .parts()
                .into_iter()
                .try_for_each(|x| load_values(x, input)),
            Self::ShortConv(state) => load_values(state.conv.inputs_mut(), input),
        }
    }
}

fn save_rows(ring: &Ring, seen: Range<usize>, out: &mut dyn Write) -> io::Result<()> {
    let mut vectors = seen.flat_map(|position| ring.row(position));
    vectors.try_for_each(|vector| out.write_all(vector))
}

fn load_rows(
    ring: &mut Ring,
    seen: Range<usize>,
    kept: usize,
    input: &mut dyn Read,
) -> io::Result<()> {
    ring.begin(seen.start);
    for position in seen.start..seen.end.min(kept) {
        ring.row_mut(position)
            .try_for_each(|vector| input.read_exact(vector))?;
    }
    // What was saved of later positions.
    let rest = seen.end.saturating_sub(kept.max(seen.start)) * ring.row_len();
    if io::copy(&mut input.take(rest as u64), &mut io::sink())? < rest as u64 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

fn save_values(values: &[f32], out: &mut dyn Write) -> io::Result<()> {
    let mut values = values.iter();
    values.try_for_each(|value| out.write_all(&value.to_le_bytes()))
}

fn load_values(values: &mut [f32], input: &mut dyn Read) -> io::Result<()> {
    let mut bytes = [0; 4];
    for value in values {
        input.read_exact(&mut bytes)?;
        *value = f32::from_le_bytes(bytes);
    }
    Ok(())
}
