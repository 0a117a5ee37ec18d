//! The command line of a tool: flags of the form `--name value`, with nothing but the standard library.

use std::collections::HashMap;
use std::error::Error;
use std::fmt::Display;
use std::process::ExitCode;
use std::str::FromStr;

/// A program of this crate, as its user sees it.
#[derive(Debug)]
pub struct Tool<'a> {
    /// What its errors begin with.
    pub name: &'a str,
    /// What `--help` prints, and a mistake in the arguments with it.
    pub usage: &'a str,
    /// The names of its flags.
    pub flags: &'a [&'a str],
}

impl Tool<'_> {
    /// All of `main`: makes options of the arguments and prints the line that `run` returns. The exit status is 2 when the
    /// arguments are wrong, 1 when the run fails.
    pub fn main<O>(
        &self,
        options: impl FnOnce(&Flags) -> Result<O, String>,
        run: impl FnOnce(&O) -> Result<String, Box<dyn Error>>,
    ) -> ExitCode {
        let Self { name, usage, flags } = self;
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        if arguments.iter().any(|argument| argument == "--help") {
            println!("{usage}");
            return ExitCode::SUCCESS;
        }
        let options = match Flags::parse(arguments.into_iter(), flags).and_then(|flags| options(&flags)) {
            Ok(options) => options,
            Err(mistake) => {
                eprintln!("{name}: {mistake}\n{usage}");
                return ExitCode::from(2);
            }
        };
        match run(&options) {
            Ok(line) => {
                println!("{line}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("{name}: {error}");
                ExitCode::FAILURE
            }
        }
    }
}

/// The flags of one command line.
#[derive(Debug)]
pub struct Flags {
    given: HashMap<String, String>,
}

impl Flags {
    /// Reads `--name value` pairs; every name must be one of `known`.
    ///
    /// # Errors
    /// A sentence that names the argument which is unknown or lacks its value.
    pub fn parse(arguments: impl Iterator<Item = String>, known: &[&str]) -> Result<Self, String> {
        let mut arguments = arguments;
        let mut given = HashMap::new();
        while let Some(argument) = arguments.next() {
            let name = argument.strip_prefix("--").filter(|name| known.contains(name));
            let name = name.ok_or_else(|| format!("unknown argument {argument:?}"))?;
            let value = arguments.next().ok_or_else(|| format!("{argument} needs a value"))?;
            given.insert(name.to_owned(), value);
        }
        Ok(Self { given })
    }

    /// The value of a flag, or `default` where it was not given.
    ///
    /// # Errors
    /// A sentence that names the flag and the value that is no `T`.
    pub fn get<T>(&self, name: &str, default: T) -> Result<T, String>
    where
        T: FromStr,
        T::Err: Display,
    {
        match self.given.get(name) {
            None => Ok(default),
            Some(value) => value.parse().map_err(|error| format!("--{name} {value}: {error}")),
        }
    }

    /// The value of a flag that has no default.
    ///
    /// # Errors
    /// A sentence that names the flag which is missing or malformed.
    pub fn required<T>(&self, name: &str) -> Result<T, String>
    where
        T: FromStr,
        T::Err: Display,
    {
        let value = self.given.get(name).ok_or_else(|| format!("--{name} is required"))?;
        value.parse().map_err(|error| format!("--{name} {value}: {error}"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Flags, String> {
        Flags::parse(line.split_whitespace().map(str::to_owned), &["port", "mode"])
    }

    #[test]
    fn given_values_win_over_defaults() {
        let flags = parse("--port 80").unwrap();
        assert_eq!(flags.required::<u16>("port"), Ok(80));
        assert_eq!(flags.get("mode", crate::Mode::Fan), Ok(crate::Mode::Fan));
    }

    #[test]
    fn mistakes_are_named() {
        assert!(parse("--prot 80").unwrap_err().contains("--prot"));
        assert!(parse("--port").unwrap_err().contains("needs a value"));
        assert!(parse("").unwrap().required::<u16>("port").unwrap_err().contains("required"));
        assert!(parse("--port x").unwrap().get("port", 1_u16).unwrap_err().contains("--port x"));
    }
}
