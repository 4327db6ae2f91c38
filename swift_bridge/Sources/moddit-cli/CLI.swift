import Foundation
import ModditCore

/// The program.
///
/// Results go to standard output, progress and errors to standard error. Exit status 0 done, 1 failed, 2 wrong usage.
@main
struct CLI {
    static let commands = [
        Generate.command, Info.command, Tokens.command, Schedule.command, Placements.command, Benchmark.command,
    ]

    static var help: String {
        let lines = commands.map { command in
            "  \(command.name)\(String(repeating: " ", count: 10 - command.name.count))\(command.summary)"
        }
        let head = ["usage: moddit-cli COMMAND [options]", "", "Run bundles of routed diffusion transformers.", ""]
        return (head + lines + ["", "moddit-cli COMMAND --help tells more."]).joined(separator: "\n")
    }

    static func main() async {
        exit(await run(Array(CommandLine.arguments.dropFirst())))
    }

    /// Runs a command.
    ///
    /// - Returns: the exit status.
    static func run(_ words: [String]) async -> Int32 {
        guard let name = words.first, !["-h", "--help"].contains(name) else {
            if words.isEmpty { return fail("no command\n\(help)", status: 2) }
            print(help)
            return 0
        }
        guard let command = (commands + [BenchmarkTrial.command]).first(where: { $0.name == name }) else {
            let known = commands.map(\.name).joined(separator: ", ")
            return fail("unknown command '\(name)', want one of \(known)", status: 2)
        }
        do {
            let arguments = try Arguments(Array(words.dropFirst()), for: command)
            if arguments.wantsHelp {
                print(command.help)
                return 0
            }
            let text = try await output(of: command, arguments)
            if !text.isEmpty { print(text) }
            return 0
        } catch let error as UsageError {
            return fail("\(error.message); moddit-cli \(name) --help tells more", status: 2)
        } catch is CancellationError {
            return fail("interrupted", status: 1)
        } catch {
            return fail((error as? ModditError)?.message ?? error.localizedDescription.printable, status: 1)
        }
    }

    private static func output(of command: Command, _ arguments: Arguments) async throws -> String {
        switch command.name {
        case Info.command.name: try Info.run(arguments)
        case Tokens.command.name: try Tokens.run(arguments)
        case Schedule.command.name: try Schedule.run(arguments)
        case Placements.command.name: try await Placements.run(arguments)
        case Benchmark.command.name: try await Benchmark.run(arguments)
        case BenchmarkTrial.command.name: try await BenchmarkTrial.run(arguments)
        default: try await Generate.run(arguments)
        }
    }

    private static func fail(_ message: String, status: Int32) -> Int32 {
        note("error: \(message)")
        return status
    }

    /// Writes a line to standard error.
    static func note(_ line: String) {
        FileHandle.standardError.write(Data((line + "\n").utf8))
    }

    /// The bundle that an option names.
    static func bundle(_ arguments: Arguments) throws -> ModelBundle {
        try ModelBundle(folder: URL(fileURLWithPath: try arguments.required(Option.bundle.name)))
    }

    /// Both sides of a picture, or neither.
    static func size(_ arguments: Arguments) throws(UsageError) -> PictureSize? {
        let height = try arguments.integer("height", in: 1...Bounds.side)
        let width = try arguments.integer("width", in: 1...Bounds.side)
        guard let height, let width else {
            guard height == nil, width == nil else { throw UsageError(message: "give both --height and --width") }
            return nil
        }
        return PictureSize(height: height, width: width)
    }
}

extension Option {
    static let computeUnits = Option(
        name: "compute-units", value: "NAME",
        help: "\(ComputeUnits.allCases.map(\.rawValue).joined(separator: ", ")).  [default: the bundle's]")
}

/// Options that say what picture.
enum PictureOptions {
    static let size = [
        Option(
            name: "height", value: "N",
            help: "Pixels, with --width.  [default: the bundle's first size, or the one nearest to the image's shape]"),
        Option(name: "width", value: "N", help: "Pixels, with --height."),
    ]
    static let steps = Option(
        name: "steps", value: "N", help: "Denoising steps.  [default: \(Request.defaultSteps)]")
    static let reuse = Option(
        name: "reuse", value: "N",
        help: "Ask the model in the first of every N steps only, and take its clean latents again in the others.  "
            + "[default: 1]")
    static let sampler = Option(
        name: "sampler", value: "NAME",
        help: "\(Sampler.allCases.map(\.rawValue).joined(separator: ", ")).  [default: the model's]")
}

/// Columns of text, the first line their names.
func table(_ rows: [[String]]) -> String {
    let widths = (0..<(rows.first?.count ?? 0)).map { column in rows.map { $0[column].count }.max() ?? 0 }
    return rows.map { row in
        let cells = zip(row, widths).map { $0 + String(repeating: " ", count: $1 - $0.count) }
        let line = cells.joined(separator: "  ")
        return String(line.reversed().drop { $0 == " " }.reversed())
    }.joined(separator: "\n")
}
