//! Which part of a conversion a job makes: as it is told, or as a scheduler numbers it.

use std::num::NonZeroU32;
use std::str::FromStr;

use shardwright_format::Part;

use crate::failure::Failure;

/// What `--part` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartArg {
    /// This one.
    Given(Part),
    /// The one of the job's number, of so many where the job does not say.
    Auto(Option<NonZeroU32>),
}

impl FromStr for PartArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "expected I/N with I from 1 to N, auto or auto/N".to_owned();
        match text.strip_prefix("auto") {
            Some("") => Ok(Self::Auto(None)),
            Some(rest) => {
                let count = rest.strip_prefix('/').and_then(|count| count.parse().ok());
                count
                    .map(|count| Self::Auto(Some(count)))
                    .ok_or_else(expected)
            }
            None => text.parse().map(Self::Given).map_err(|_| expected()),
        }
    }
}

impl PartArg {
    /// The part, given the variables of the process.
    ///
    /// # Errors
    /// No scheduler's variables, or ones that do not number parts.
    pub fn part(self) -> Result<Part, Failure> {
        match self {
            Self::Given(part) => Ok(part),
            Self::Auto(count) => auto(count.map(NonZeroU32::get), &|name| std::env::var(name).ok())
                .map_err(Failure::new),
        }
    }
}

/// A variable's value, if the variable is set.
type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The variable that holds a job's number, and those of the first number, the step and the count.
struct Scheduler {
    index: &'static str,
    first: Option<&'static str>,
    step: Option<&'static str>,
    count: Option<&'static str>,
}

/// Slurm's arrays, AWS Batch's array jobs, Kubernetes' indexed jobs.
const SCHEDULERS: [Scheduler; 3] = [
    Scheduler {
        index: "SLURM_ARRAY_TASK_ID",
        first: Some("SLURM_ARRAY_TASK_MIN"),
        step: Some("SLURM_ARRAY_TASK_STEP"),
        count: Some("SLURM_ARRAY_TASK_COUNT"),
    },
    Scheduler {
        index: "AWS_BATCH_JOB_ARRAY_INDEX",
        first: None,
        step: None,
        count: Some("AWS_BATCH_JOB_ARRAY_SIZE"),
    },
    Scheduler { index: "JOB_COMPLETION_INDEX", first: None, step: None, count: None },
];

/// The part of the first scheduler whose variables are set. With a given count numbers begin at 0,
/// whatever the array of this job begins with: it may be a repetition of some of its jobs alone.
fn auto(given: Option<u32>, variables: Variables<'_>) -> Result<Part, String> {
    let found = SCHEDULERS
        .iter()
        .find(|scheduler| variables(scheduler.index).is_some());
    let scheduler = found.ok_or_else(|| {
        let names = SCHEDULERS.map(|scheduler| scheduler.index).join(", ");
        format!("--part auto: expected one of {names}, found none; give --part I/N")
    })?;
    let number = |name: Option<&'static str>, default: Option<u32>| {
        let Some((name, text)) = name.and_then(|name| Some((name, variables(name)?))) else {
            return Ok(default);
        };
        let read = text.trim().parse().map(Some);
        read.map_err(|_| format!("{name}: expected a number, found `{text}`"))
    };
    let name = scheduler.index;
    let index = number(Some(name), None)?.unwrap_or_default();
    let (first, step, count) = match given {
        Some(count) => (0, 1, Some(count)),
        None => (
            number(scheduler.first, Some(0))?.unwrap_or_default(),
            number(scheduler.step, Some(1))?.unwrap_or(1).max(1),
            number(scheduler.count, None)?,
        ),
    };
    let unknown = || format!("{name} does not say how many parts there are; give --part auto/N");
    let count = count.ok_or_else(unknown)?;
    let place = index
        .checked_sub(first)
        .filter(|place| place.is_multiple_of(step));
    let part = place.and_then(|place| Part::new((place / step).checked_add(1)?, count));
    part.ok_or_else(|| {
        let last = u64::from(first) + u64::from(step) * u64::from(count.saturating_sub(1));
        format!("{name}: expected {first} to {last} in steps of {step}, found {index}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part_of(given: Option<u32>, variables: &[(&str, &str)]) -> Result<String, String> {
        let value = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        auto(given, &value).map(|part| part.to_string())
    }

    #[test]
    fn what_part_says() {
        assert_eq!("auto".parse(), Ok(PartArg::Auto(None)));
        assert_eq!("auto/3".parse(), Ok(PartArg::Auto(NonZeroU32::new(3))));
        for text in ["auto/0", "auto/", "automatic", "0/3", "4/3", ""] {
            assert!(text.parse::<PartArg>().is_err(), "{text}");
        }
    }

    #[test]
    fn slurm_numbers_an_array_from_anywhere_in_steps() {
        let slurm = |id, min, step, count| {
            let names = ["ID", "MIN", "STEP", "COUNT"].map(|n| format!("SLURM_ARRAY_TASK_{n}"));
            let pairs: Vec<_> = names
                .iter()
                .map(String::as_str)
                .zip([id, min, step, count])
                .collect();
            part_of(None, &pairs)
        };
        assert_eq!(slurm("0", "0", "1", "4"), Ok("1 of 4".to_owned()));
        assert_eq!(slurm("4", "1", "1", "4"), Ok("4 of 4".to_owned()));
        assert_eq!(slurm("15", "10", "5", "2"), Ok("2 of 2".to_owned()));
        // An array of 1,5,7: three jobs whose numbers are no parts.
        let list = slurm("5", "1", "1", "3").unwrap_err();
        assert_eq!(list, "SLURM_ARRAY_TASK_ID: expected 1 to 3 in steps of 1, found 5");
        assert!(slurm("12", "10", "5", "2").is_err() && slurm("1", "2", "1", "4").is_err());
        let bad = slurm("x", "0", "1", "4").unwrap_err();
        assert_eq!(bad, "SLURM_ARRAY_TASK_ID: expected a number, found `x`");
    }

    #[test]
    fn a_given_count_is_that_of_the_first_array() {
        let again = [
            ("SLURM_ARRAY_TASK_ID", "2"),
            ("SLURM_ARRAY_TASK_MIN", "2"),
            ("SLURM_ARRAY_TASK_COUNT", "1"),
        ];
        assert_eq!(part_of(Some(4), &again), Ok("3 of 4".to_owned()));
        assert_eq!(part_of(Some(4), &[("JOB_COMPLETION_INDEX", "3")]), Ok("4 of 4".to_owned()));
        assert!(part_of(Some(4), &[("JOB_COMPLETION_INDEX", "4")]).is_err());
    }

    #[test]
    fn other_schedulers() {
        let batch = [("AWS_BATCH_JOB_ARRAY_INDEX", "6"), ("AWS_BATCH_JOB_ARRAY_SIZE", "7")];
        assert_eq!(part_of(None, &batch), Ok("7 of 7".to_owned()));
        let indexed = part_of(None, &[("JOB_COMPLETION_INDEX", "0")]).unwrap_err();
        assert!(indexed.ends_with("how many parts there are; give --part auto/N"), "{indexed}");
        let none = part_of(Some(4), &[]).unwrap_err();
        assert!(none.starts_with("--part auto: expected one of SLURM_ARRAY_TASK_ID, "), "{none}");
    }
}
