import Foundation
import ModditCore
import ModditCoreML

/// `moddit-cli placement`: where Core ML would run each operation.
enum Placements {
    static let command = Command(
        name: "placement", summary: "Print the compute unit of every operation, by function.", argument: nil,
        options: [
            .bundle, .computeUnits,
            Option(name: "function", value: "NAME", help: "Ask for functions of this name only.  [default: all]"),
            .json,
        ])

    /// Gives the placement of a function, or fails.
    typealias Ask = (Package, GraphFunction) async throws -> Placement

    static func run(_ arguments: Arguments) async throws -> String {
        let options = CoreMLOptions(computeUnits: try arguments.choice("compute-units"))
        _ = try arguments.required(Option.bundle.name)
        try CoreMLRunner.checkAvailable()
        let bundle = try CLI.bundle(arguments)
        let runner = try CoreMLRunner(bundle, options: options)
        let graphs = try bundle.graphs()
        let found = try await PlacementReport(graphs, only: arguments.values["function"], note: CLI.note) {
            try await runner.place($0, function: $1)
        }
        let units = options.computeUnits ?? graphs.computeUnits
        let output = arguments.flags.contains("json") ? found.json(units).text : found.text(units)
        guard found.failures.isEmpty else {
            print(output)
            throw ModditError.compute("[placement] no placement of \(found.failures.joined(separator: "; "))")
        }
        return output
    }
}

/// The placements of a bundle's functions.
struct PlacementReport: Sendable, Equatable {
    /// Those that there are.
    let placements: [Placement]
    /// Package and name of the functions without one.
    let failures: [String]

    /// Asks for the placement of every function, or of those with a name.
    ///
    /// One that fails is noted, and the others are asked.
    ///
    /// - Throws: `ModditError.missing` if no function has the name; `CancellationError`.
    init(_ graphs: Graphs, only name: String?, note: (String) -> Void, ask: Placements.Ask) async throws {
        let packages = PackageRole.allCases.flatMap { graphs.packages[$0] ?? [] }
        var (placements, failures): ([Placement], [String]) = ([], [])
        for package in packages {
            for function in package.functions where name == nil || function.name == name {
                let place = "\(package.path.printable), \(function.name)"
                note("placing \(place)")
                do {
                    placements.append(try await ask(package, function))
                } catch let error as CancellationError {
                    throw error
                } catch {
                    note("error: \((error as? ModditError)?.message ?? error.localizedDescription.printable)")
                    failures.append(place)
                }
            }
        }
        if let name, placements.isEmpty, failures.isEmpty {
            let known = Set(packages.flatMap(\.functions).map(\.name)).sorted().joined(separator: ", ")
            throw ModditError.missing("[placement] no function '\(name)', want one of \(known)")
        }
        self.placements = placements
        self.failures = failures
    }

    /// Everything, for machines.
    func json(_ units: ComputeUnits) -> JSON {
        let items = placements.map { placement in
            JSON.object([
                "package": .string(placement.package),
                "function": .string(placement.function),
                "operations": .dictionary(
                    placement.operations.mapValues { devices in .dictionary(devices.mapValues { .integer($0) }) }),
            ])
        }
        return .object([
            "compute_units": .string(units.rawValue), "placements": .array(items),
            "failures": .array(failures.map { .string($0) }),
        ])
    }

    /// A paragraph for each function: first what selects and moves tokens, which few compute units have.
    func text(_ units: ComputeUnits) -> String {
        let paragraphs = placements.map { placement in
            """
            operations of \(placement.package.printable), \(placement.function)
              top-k, gather, scatter: \(Self.list(placement.operations.filter { Placement.selecting.contains($0.key) }))
              others: \(Self.list(placement.operations.filter { !Placement.selecting.contains($0.key) }))
            """
        }
        return (["compute units: \(units.rawValue)"] + paragraphs).joined(separator: "\n")
    }

    private static func list(_ operations: [String: [String: Int]]) -> String {
        let parts = operations.sorted { $0.key < $1.key }.map { kind, devices in
            "\(kind) "
                + devices.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value)" }.joined(separator: ", ")
        }
        return parts.isEmpty ? "none" : parts.joined(separator: "; ")
    }
}
