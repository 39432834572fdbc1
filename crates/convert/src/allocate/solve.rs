//! Which choice for each item, so that the whole costs least and fits.

/// One way to store an item.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EncodingCost {
    /// Bytes it takes.
    pub bytes: u64,
    /// What it costs, in any unit that adds up.
    pub cost: f64,
}

/// A step from one choice of an item to a better one.
#[derive(Clone, Copy, Debug)]
struct HullStep {
    item: usize,
    from: usize,
    to: usize,
    /// Cost saved per byte added.
    gain: f64,
}

/// The choice of each item, its number among the item's, such that all fit in `budget` bytes; none
/// when even the smallest do not.
///
/// Steps along each item's lower convex hull are taken by falling gain per byte (the Lagrangian
/// solution of the multiple-choice knapsack), then what room is left goes to the best single
/// steps that still fit.
pub fn solve(items: &[Vec<EncodingCost>], budget: u64) -> Option<Vec<usize>> {
    let mut chosen: Vec<usize> = items
        .iter()
        .map(|choices| smallest(choices))
        .collect::<Option<_>>()?;
    let mut used: u64 = items
        .iter()
        .zip(&chosen)
        .map(|(choices, at)| choices[*at].bytes)
        .sum();
    if used > budget {
        return None;
    }
    let mut steps: Vec<HullStep> = items
        .iter()
        .enumerate()
        .flat_map(|(item, choices)| hull(item, choices))
        .collect();
    steps.sort_by(|a, b| b.gain.total_cmp(&a.gain).then(a.item.cmp(&b.item)));
    for HullStep { item, from, to, .. } in steps {
        let more = items[item][to].bytes - items[item][from].bytes;
        // A step whose forerunner did not fit does not start where the item is.
        if chosen[item] == from && used + more <= budget {
            (chosen[item], used) = (to, used + more);
        }
    }
    while let Some((item, to)) = best_fit(items, &chosen, budget - used) {
        used = used + items[item][to].bytes - items[item][chosen[item]].bytes;
        chosen[item] = to;
    }
    Some(chosen)
}

/// The choice of least bytes; of equal ones the cheapest.
fn smallest(choices: &[EncodingCost]) -> Option<usize> {
    let key =
        |a: &EncodingCost, b: &EncodingCost| a.bytes.cmp(&b.bytes).then(a.cost.total_cmp(&b.cost));
    (0..choices.len()).min_by(|a, b| key(&choices[*a], &choices[*b]))
}

/// Steps along the lower convex hull of an item's choices, from the smallest on.
fn hull(item: usize, choices: &[EncodingCost]) -> Vec<HullStep> {
    let mut steps = Vec::new();
    let Some(mut from) = smallest(choices) else { return steps };
    // From the choice in hand the next corner of the hull is that of the steepest descent; steps get less
    // steep from one to the next, so that taking all items' steps by gain keeps each item's in order.
    loop {
        let step = |to: usize| {
            let bytes = choices[to].bytes.checked_sub(choices[from].bytes)?;
            let gain = (choices[from].cost - choices[to].cost) / bytes as f64;
            (bytes > 0 && gain > 0.0).then_some(HullStep { item, from, to, gain })
        };
        let best = (0..choices.len())
            .filter_map(step)
            .max_by(|a, b| a.gain.total_cmp(&b.gain));
        let Some(best) = best else { return steps };
        steps.push(best);
        from = best.to;
    }
}

/// The change of one item that saves most within `room` more bytes.
fn best_fit(items: &[Vec<EncodingCost>], chosen: &[usize], room: u64) -> Option<(usize, usize)> {
    let mut best: Option<(f64, usize, usize)> = None;
    for (item, choices) in items.iter().enumerate() {
        let now = choices[chosen[item]];
        for (to, choice) in choices.iter().enumerate() {
            let saved = now.cost - choice.cost;
            let fits = choice.bytes <= now.bytes + room;
            if fits && saved > 0.0 && best.is_none_or(|(most, ..)| saved > most) {
                best = Some((saved, item, to));
            }
        }
    }
    best.map(|(_, item, to)| (item, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choices(of: &[(u64, f64)]) -> Vec<EncodingCost> {
        of.iter()
            .map(|&(bytes, cost)| EncodingCost { bytes, cost })
            .collect()
    }

    #[test]
    fn bytes_go_where_they_save_most() {
        let items = [choices(&[(2, 10.0), (4, 1.0)]), choices(&[(2, 3.0), (4, 1.0)])];
        assert_eq!(solve(&items, 4), Some(vec![0, 0]));
        assert_eq!(solve(&items, 7), Some(vec![1, 0]));
        assert_eq!(solve(&items, 8), Some(vec![1, 1]));
        assert_eq!(solve(&items, 3), None);
    }

    #[test]
    fn choices_above_the_hull_fill_the_rest() {
        let items = [choices(&[(1, 10.0), (2, 9.0), (5, 1.0)])];
        assert_eq!(solve(&items, 4), Some(vec![1]));
        assert_eq!(solve(&items, 5), Some(vec![2]));
    }

    #[test]
    fn it_is_as_good_as_trying_everything_up_to_one_step() {
        let items: Vec<_> = (1u64..6)
            .map(|i| {
                let cost = |bits: u64| (i * i) as f64 * 0.25f64.powi(bits as i32);
                choices(&[2u64, 3, 4, 6].map(|bits| (bits * (1 + i % 3), cost(bits))))
            })
            .collect();
        for budget in 20..60 {
            let cost = |chosen: &[usize]| -> f64 {
                items.iter().zip(chosen).map(|(c, at)| c[*at].cost).sum()
            };
            let mut least = f64::INFINITY;
            for code in 0..4usize.pow(5) {
                let chosen: Vec<usize> = (0..5).map(|i| code / 4usize.pow(i) % 4).collect();
                let bytes: u64 = items.iter().zip(&chosen).map(|(c, at)| c[*at].bytes).sum();
                if bytes <= budget {
                    least = least.min(cost(&chosen));
                }
            }
            let Some(found) = solve(&items, budget) else {
                assert!(least.is_infinite());
                continue;
            };
            assert!(cost(&found) <= 1.25 * least, "{budget}: {} {least}", cost(&found));
        }
    }
}
