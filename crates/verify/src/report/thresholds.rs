//! Limits that turn figures into a verdict.

use serde::{Deserialize, Serialize};

use crate::check::divergence::Divergence;
use crate::check::finding::{Finding, Kind};
use crate::error::{Result, VerifyError};

/// What a bundle must keep to. Absent limits do not bind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Thresholds {
    /// Largest relative RMSE of a quantized tensor; a sanity limit by its bits when absent.
    pub max_rmse: Option<f64>,
    /// Most bits per weight.
    pub max_bits_per_weight: Option<f64>,
    /// Largest mean divergence, in nats per token.
    pub max_kld: Option<f64>,
    /// Largest divergence of 99 % of tokens.
    pub max_kld_p99: Option<f64>,
    /// Largest divergence of 99.9 % of tokens.
    pub max_kld_p999: Option<f64>,
    /// Least share of tokens whose most probable continuation stays the same.
    pub min_same_top: Option<f64>,
    /// Largest perplexity relative to the original's.
    pub max_ppl_ratio: Option<f64>,
}

impl Thresholds {
    /// Refuses limits that nothing will be measured for, or that are not numbers.
    ///
    /// # Errors
    /// Names the first such limit.
    pub(crate) fn check(&self, checkpoint: bool, text: bool) -> Result<()> {
        for (name, limit, measured, needs) in [
            ("max_rmse", self.max_rmse, checkpoint, "a checkpoint"),
            ("max_bits_per_weight", self.max_bits_per_weight, true, ""),
            ("max_kld", self.max_kld, text, "a text"),
            ("max_kld_p99", self.max_kld_p99, text, "a text"),
            ("max_kld_p999", self.max_kld_p999, text, "a text"),
            ("min_same_top", self.min_same_top, text, "a text"),
            ("max_ppl_ratio", self.max_ppl_ratio, text, "a text"),
        ] {
            let Some(limit) = limit else { continue };
            if !limit.is_finite() || limit < 0.0 {
                let message = format!("{name}: expected a number of at least 0, found {limit}");
                return Err(VerifyError::Invalid(message));
            }
            if !measured {
                return Err(VerifyError::Invalid(format!(
                    "{name}: needs {needs} to be measured with"
                )));
            }
        }
        Ok(())
    }

    /// The limits that the bundle's size does not keep to.
    pub(crate) fn size_findings(&self, bits_per_weight: f64) -> Option<Finding> {
        at_most("bits per weight", self.max_bits_per_weight, bits_per_weight, None)
    }

    /// The limits that the divergence does not keep to.
    pub(crate) fn findings(&self, d: &Divergence) -> Vec<Finding> {
        let same_top = self
            .min_same_top
            .filter(|limit| d.same_top < *limit)
            .map(|limit| {
                let found = format!("{:.6} ± {:.6}", d.same_top, d.same_top_se);
                Finding::new(Kind::Threshold, "same top token")
                    .expected(format!("at least {limit}"), found)
            });
        [
            at_most("mean KLD", self.max_kld, d.kld_mean, Some(d.kld_mean_se)),
            at_most("99 % KLD", self.max_kld_p99, d.kld_p99, None),
            at_most("99.9 % KLD", self.max_kld_p999, d.kld_p999, None),
            same_top,
            at_most("perplexity ratio", self.max_ppl_ratio, d.ppl_ratio, Some(d.ppl_ratio_se)),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

fn at_most(what: &str, limit: Option<f64>, found: f64, se: Option<f64>) -> Option<Finding> {
    let limit = limit.filter(|limit| found > *limit)?;
    let error = se.map_or(String::new(), |se| format!(" ± {se:.6}"));
    let finding = Finding::new(Kind::Threshold, what);
    Some(finding.expected(format!("at most {limit}"), format!("{found:.6}{error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_are_not_kept_are_found() {
        let d = Divergence {
            kld_mean: 0.02,
            kld_mean_se: 0.001,
            kld_p99: 0.3,
            kld_p999: 1.0,
            same_top: 0.9,
            same_top_se: 0.01,
            ppl_ratio: 1.1,
            ppl_ratio_se: 0.002,
            ..Divergence::default()
        };
        let limits = Thresholds {
            max_kld: Some(0.01),
            max_kld_p99: Some(0.3),
            max_kld_p999: Some(0.5),
            min_same_top: Some(0.95),
            max_ppl_ratio: Some(1.05),
            ..Thresholds::default()
        };
        let found: Vec<_> = limits
            .findings(&d)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            found,
            [
                "mean KLD: expected at most 0.01, found 0.020000 ± 0.001000",
                "99.9 % KLD: expected at most 0.5, found 1.000000",
                "same top token: expected at least 0.95, found 0.900000 ± 0.010000",
                "perplexity ratio: expected at most 1.05, found 1.100000 ± 0.002000",
            ]
        );
        assert_eq!(Thresholds::default().findings(&d), []);
        let small = Thresholds { max_bits_per_weight: Some(4.5), ..Thresholds::default() };
        assert_eq!(small.size_findings(4.5), None);
        let finding = small.size_findings(4.75).unwrap().to_string();
        assert_eq!(finding, "bits per weight: expected at most 4.5, found 4.750000");
    }

    #[test]
    fn a_limit_that_cannot_be_measured_is_refused() {
        let kld = Thresholds { max_kld: Some(0.1), ..Thresholds::default() };
        let error = kld.check(true, false).unwrap_err().to_string();
        assert_eq!(error, "max_kld: needs a text to be measured with");
        assert!(kld.check(true, true).is_ok());
        let wrong = Thresholds { min_same_top: Some(f64::NAN), ..Thresholds::default() };
        let error = wrong.check(true, true).unwrap_err().to_string();
        assert_eq!(error, "min_same_top: expected a number of at least 0, found NaN");
    }
}
