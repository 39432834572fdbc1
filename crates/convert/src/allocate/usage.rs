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

/// Experts that a role is tried on at most: what others would add is taken to be as much for what they are used.
pub const TRIED_EXPERTS: usize = 16;

/// The experts of a layer that a role is tried on.
pub struct TriedExperts {
    /// Those that the text uses most, ascending.
    pub experts: Vec<u32>,
    /// Their part of what errors of all experts add to the layer's output.
    pub share: f64,
}

impl TriedExperts {
    /// Of `0..experts`, by how much `routes` use them.
    pub fn new(routes: &Routes, experts: u32) -> Self {
        let (used, tried) = (routes.uses(experts), routes.most_used(experts, TRIED_EXPERTS));
        let (all, of_tried): (f64, f64) =
            (used.iter().sum(), tried.iter().map(|expert| used[*expert as usize]).sum());
        Self { experts: tried, share: if all > 0.0 { of_tried / all } else { 1.0 } }
    }
}

/// The experts `0..experts` by how much `routes` use them, in classes of which each is used twice as much as the one
/// before: a bit less of codes makes four times the squared error, so that finer classes would bring little.
pub fn used_alike(routes: &Routes, experts: u32) -> Vec<UsedAlike> {
    let used = routes.uses(experts);
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
    fn roles_are_tried_on_the_experts_that_are_used_most() {
        let tried = |picks: &[u32], experts| {
            let (picks, weights) = (picks.to_vec(), vec![1.0; picks.len()]);
            TriedExperts::new(&Routes { k: 1, experts: picks, weights }, experts)
        };
        // 18 experts, of which each is used but the last; the first three times.
        let picks: Vec<u32> = (0..17).chain([0, 0]).collect();
        let found = tried(&picks, 18);
        assert_eq!(found.experts, (0..16).collect::<Vec<_>>());
        assert!((found.share - 18.0 / 19.0).abs() < 1e-12);
        let found = tried(&[], 3);
        assert_eq!((found.experts, found.share), (vec![0, 1, 2], 1.0));
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
