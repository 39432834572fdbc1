//! What the types of the KV cache cost, for a terminal.

use std::fmt::{self, Display, Formatter};

use crate::check::divergence::{CacheCost, CachePrice};
use crate::report::ladder::Ladder;

impl Display for CachePrice {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        section(
            f,
            self,
            &[("original", Some(&self.original)), ("candidate", self.candidate.as_ref())],
        )
    }
}

/// The section of all candidates that were measured.
pub(super) fn of_ladder(f: &mut Formatter<'_>, ladder: &Ladder) -> fmt::Result {
    let candidates = ladder.candidates.iter();
    let prices: Vec<_> = candidates
        .filter_map(|report| Some((report.name.as_str(), report.cache.as_ref()?)))
        .collect();
    let Some((_, first)) = prices.first() else { return Ok(()) };
    let own = prices
        .iter()
        .map(|(name, price)| (*name, price.candidate.as_ref()));
    let rows: Vec<_> = [("original", Some(&first.original))]
        .into_iter()
        .chain(own)
        .collect();
    writeln!(f)?;
    section(f, first, &rows)
}

fn section(
    f: &mut Formatter<'_>,
    price: &CachePrice,
    rows: &[(&str, Option<&CacheCost>)],
) -> fmt::Result {
    let (k, v) = (price.types.k.name(), price.types.v.name());
    writeln!(f, "====== KV cache: keys in {k}, values in {v} ======")?;
    let (bytes, float) = (price.position_bytes, price.position_bytes_f16);
    writeln!(f, "{bytes} bytes per position, in f16 {float}")?;
    writeln!(
        f,
        "each model against itself with the cache in f32; error: windows as independent\n"
    )?;
    let width = rows.iter().map(|(name, _)| name.chars().count()).max();
    let width = width.unwrap_or(0);
    writeln!(
        f,
        "{:<width$}  {:>21} {:>10} {:>9}",
        "model", "mean KLD ± error", "99 %", "same top"
    )?;
    for (name, cost) in rows {
        let Some(cost) = cost else {
            writeln!(f, "{name:<width$}  {:>21}", "not finite")?;
            continue;
        };
        let error = cost
            .kld_mean_se_by_window
            .map_or("-".to_owned(), |se| format!("{se:.6}"));
        let kld = format!("{:.6} ± {error:>8}", cost.kld_mean);
        let (p99, same) = (cost.kld_p99, 100.0 * cost.same_top);
        writeln!(f, "{name:<width$}  {kld:>21} {p99:>10.6} {same:>8.2}%")?;
    }
    Ok(())
}
