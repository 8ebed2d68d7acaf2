//! The command line of the checks.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this is a command-line program")]

use std::process::ExitCode;

use xtask::{Result, arrows, ci, folders, links, readme, root, tidy};

const USAGE: &str = "\
Checks of the repository.

Usage: cargo xtask <COMMAND>

Commands:
  ci       run everything a change must pass, in order
  tidy     check formatting, lengths, skipped tests, unused operations and wording
  arrows   check that crates, and folders inside them, depend only in the allowed direction
  links    check that paths in Markdown files exist
  kernels  compile the GPU kernels for all architectures and check for register spills
  readme   check the commands in the READMEs and guides against the help of `lehr`
";

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let command = match arguments.as_slice() {
        [command] => command.as_str(),
        _ => "",
    };
    let result = match command {
        "ci" => ci::run(root(), |step| println!("==> {step}")),
        "arrows" => arrow_problems().map(|p| report(command, &p)),
        "tidy" => tidy::problems(root()).map(|p| report(command, &p)),
        "kernels" => ci::kernels(root(), |step| println!("==> {step}")),
        "links" => links::problems(root()).map(|p| report(command, &p)),
        "readme" => readme_problems().map(|p| report(command, &p)),
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn arrow_problems() -> Result<Vec<String>> {
    let mut problems = arrows::problems(root())?;
    problems.extend(folders::problems(root())?);
    Ok(problems)
}

fn readme_problems() -> Result<Vec<String>> {
    let program = ci::build_lehr(root(), true)?;
    readme::problems(root(), &program)
}

/// Prints the problems; true if there are none.
fn report(check: &str, problems: &[String]) -> bool {
    for problem in problems {
        eprintln!("{check}: {problem}");
    }
    problems.is_empty()
}
