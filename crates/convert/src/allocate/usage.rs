//! How much a text uses the experts of a layer: those that it uses alike are stored alike.

use std::collections::BTreeMap;

use shardwright_runtime::Routes;

/// Experts of a layer that are used about as much.
#[derive(Clone, Debug, PartialEq)]
pub struct UsedAlike {
    /// Ascending.
    pub experts: Vec<u32>,
    /// Their part of what errors of all experts add to the layer's output.
    pub share: f64,
}

/// What an expert counts for at least, of the mean: what this text does not pick, others do.
const LEAST: f64 = 1.0 / 8.0;

/// The class of the experts that are used most, in doublings of the mean.
const MOST: i32 = 3;

/// The experts `0..experts` by how much `routes` use them, in classes of which each is used twice as much as the one
/// before: a bit less of codes makes four times the squared error, so that finer classes would bring little.
pub fn used_alike(routes: &Routes, experts: u32) -> Vec<UsedAlike> {
    // What an expert's error adds to a token's output goes with its weight there, squared it goes with its square.
    let mut used = vec![0.0; experts as usize];
    for (expert, weight) in routes.experts.iter().zip(&routes.weights) {
        used[*expert as usize] += f64::from(*weight).powi(2);
    }
    let mean = used.iter().sum::<f64>() / f64::from(experts);
    if mean <= 0.0 {
        return vec![UsedAlike { experts: (0..experts).collect(), share: 1.0 }];
    }
    let used = used.into_iter().map(|used| (used / mean).max(LEAST));
    let mut classes = BTreeMap::<i32, UsedAlike>::new();
    for (expert, used) in (0..experts).zip(used.clone()) {
        let class = (used.log2().floor() as i32).min(MOST);
        let empty = || UsedAlike { experts: Vec::new(), share: 0.0 };
        let class = classes.entry(class).or_insert_with(empty);
        class.experts.push(expert);
        class.share += used;
    }
    let all: f64 = used.sum();
    let shared = |class: UsedAlike| UsedAlike { share: class.share / all, ..class };
    classes.into_values().map(shared).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes(picks: &[u32], weights: &[f32], experts: u32) -> Vec<UsedAlike> {
        let routes = Routes { k: 1, experts: picks.to_vec(), weights: weights.to_vec() };
        used_alike(&routes, experts)
    }

    #[test]
    fn experts_used_alike_are_together() {
        // Of 4, 1, 1 and 0 pieces of weight the mean is 1.5.
        let found = classes(&[0, 1, 2], &[2.0, 1.0, -1.0], 4);
        let experts: Vec<_> = found.iter().map(|class| &class.experts[..]).collect();
        assert_eq!(experts, [&[3][..], &[1, 2], &[0]]);
        let all = 4.0 / 1.5 + 2.0 / 1.5 + LEAST;
        for (class, share) in found.iter().zip([LEAST, 2.0 / 1.5, 4.0 / 1.5]) {
            assert!((class.share - share / all).abs() < 1e-12, "{class:?}");
        }
    }

    #[test]
    fn a_text_without_picks_tells_nothing() {
        for (picks, weights) in [(&[][..], &[][..]), (&[1], &[0.0])] {
            let found = classes(picks, weights, 2);
            assert_eq!(found, [UsedAlike { experts: vec![0, 1], share: 1.0 }]);
        }
    }

    #[test]
    fn no_expert_is_a_class_of_its_own_for_being_used_most() {
        let found = classes(&[0; 90], &[1.0; 90], 90);
        assert_eq!((found.len(), &found[1].experts[..]), (2, &[0][..]));
        assert!((found.iter().map(|class| class.share).sum::<f64>() - 1.0).abs() < 1e-12);
    }
}
