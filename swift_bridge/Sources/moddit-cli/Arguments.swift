/// An option of a command.
struct Option: Sendable {
    let name: String
    /// Name of its value; nil for a flag.
    let value: String?
    let help: String
    /// Whether it may be there several times.
    var isRepeatable = false

    static let json = Option(name: "json", value: nil, help: "Print one JSON object instead of text.")
    static let bundle = Option(name: "bundle", value: "DIR", help: "Bundle to use.")
}

/// A command: what it is called with, and its help.
struct Command: Sendable {
    let name: String
    let summary: String
    /// Name of an argument without a dash; nil if there is none.
    let argument: String?
    let options: [Option]

    /// The text of --help.
    var help: String {
        let usage = ["usage: moddit-cli \(name)", argument, "[options]"].compactMap { $0 }.joined(separator: " ")
        let left = options.map { "--\($0.name)" + ($0.value.map { " \($0)" } ?? "") } + ["-h, --help"]
        let width = left.map(\.count).max() ?? 0
        let lines = zip(left, options.map(\.help) + ["Print this and exit."]).map { name, help in
            "  \(name)\(String(repeating: " ", count: width - name.count))  \(help)"
        }
        return ([usage, "", summary, ""] + lines).joined(separator: "\n")
    }
}

/// Wrong usage: exit status 2.
struct UsageError: Error, Equatable {
    let message: String
}

/// What a user wrote after the name of a command.
struct Arguments: Sendable, Equatable {
    private(set) var values: [String: String] = [:]
    /// Values of the options that may be there several times, in order.
    private(set) var lists: [String: [String]] = [:]
    private(set) var flags: Set<String> = []
    private(set) var positional: [String] = []
    private(set) var wantsHelp = false

    /// Reads words: `--name value`, `--name=value`, flags, and after `--` only arguments.
    ///
    /// - Throws: `UsageError` for an unknown or repeated option, a missing value, or too many arguments.
    init(_ words: [String], for command: Command) throws(UsageError) {
        var rest = words[...]
        while let word = rest.popFirst() {
            if word == "--" {
                positional += rest
                break
            } else if word == "-h" || word == "--help" {
                wantsHelp = true
            } else if word.hasPrefix("--") {
                try take(word.dropFirst(2), &rest, command)
            } else if word.hasPrefix("-"), word.count > 1 {
                throw UsageError(message: "unknown option \(word)")
            } else {
                positional.append(word)
            }
        }
        guard positional.count <= (command.argument == nil ? 0 : 1) else {
            throw UsageError(message: "unexpected argument '\(positional.last ?? "")'")
        }
    }

    private mutating func take(
        _ word: Substring, _ rest: inout ArraySlice<String>, _ command: Command
    ) throws(UsageError) {
        let parts = word.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
        let name = parts.first.map { String($0) } ?? ""
        guard let option = command.options.first(where: { $0.name == name }) else {
            throw UsageError(message: "unknown option --\(name)")
        }
        guard values[name] == nil, !flags.contains(name) else {
            throw UsageError(message: "option --\(name) is there twice")
        }
        if option.value == nil {
            guard parts.count == 1 else { throw UsageError(message: "option --\(name) takes no value") }
            flags.insert(name)
        } else if let value = parts.count == 2 ? String(parts[1]) : rest.popFirst() {
            if option.isRepeatable { lists[name, default: []].append(value) } else { values[name] = value }
        } else {
            throw UsageError(message: "option --\(name) lacks its value")
        }
    }

    /// The value of an option that must be there.
    func required(_ name: String) throws(UsageError) -> String {
        guard let value = values[name] else { throw UsageError(message: "option --\(name) is required") }
        return value
    }

    /// A whole number; nil if the option is not there.
    func integer<Number: FixedWidthInteger>(
        _ name: String, in range: ClosedRange<Number>
    ) throws(UsageError) -> Number? {
        guard let text = values[name] else { return nil }
        guard let number = Number(text), range.contains(number) else {
            throw UsageError(message: "option --\(name) = '\(text)', want an integer in \(range)")
        }
        return number
    }

    /// A number of at least 0; nil if the option is not there.
    func number(_ name: String) throws(UsageError) -> Double? {
        guard let text = values[name] else { return nil }
        guard let number = Double(text), number.isFinite, number >= 0 else {
            throw UsageError(message: "option --\(name) = '\(text)', want a number of at least 0")
        }
        return number
    }

    /// One of an enumeration's names; nil if the option is not there.
    func choice<Choice: RawRepresentable & CaseIterable>(_ name: String) throws(UsageError) -> Choice?
    where Choice.RawValue == String {
        guard let text = values[name] else { return nil }
        return try Self.choice(name, text)
    }

    /// The names of an option that may be there several times.
    func choices<Choice: RawRepresentable & CaseIterable>(_ name: String) throws(UsageError) -> [Choice]
    where Choice.RawValue == String {
        var found: [Choice] = []
        for text in lists[name] ?? [] { found.append(try Self.choice(name, text)) }
        return found
    }

    private static func choice<Choice: RawRepresentable & CaseIterable>(
        _ name: String, _ text: String
    ) throws(UsageError) -> Choice where Choice.RawValue == String {
        guard let value = Choice(rawValue: text) else {
            let known = Choice.allCases.map(\.rawValue).joined(separator: ", ")
            throw UsageError(message: "option --\(name) = '\(text)', want one of \(known)")
        }
        return value
    }
}
